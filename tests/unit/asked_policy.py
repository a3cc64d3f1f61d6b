"""A policy that answers a label source from a script, and keeps what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from groups import boxed, completion

from ttrl.data.free_prompts import Excerpt, Request
from ttrl.types import Completion


class Scripted:
    """``replies[name]`` says what the policy replies to a message; None: there was no room."""

    def __init__(self, **replies: Callable[[str], Sequence[str | None] | None]) -> None:
        self.replies = replies
        self.asked: list[tuple[str, str, str, int, int, bool]] = []

    def __call__(
        self,
        name: str,
        requests: Sequence[Request],
        *,
        n: int,
        max_new_tokens: int,
        answers: bool = False,
    ) -> list[tuple[Completion, ...]]:
        found = []
        for request in requests:
            parts = (p.text if isinstance(p, Excerpt) else p for p in request.parts)
            message = "".join(parts)
            self.asked.append((name, request.question.id, message, n, max_new_tokens, answers))
            said = self.replies[name](message)
            found.append(() if said is None else tuple(completion(s or "") for s in said))
        return found


def answers(*given: str | None) -> list[str]:
    return [boxed(answer) for answer in given]
