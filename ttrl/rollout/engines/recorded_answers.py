"""What a step has sampled for each prompt, as its record holds it, and a digest of that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from ttrl.types import Completion, CompletionGroup


class Answers(NamedTuple):
    """What was sampled for a prompt."""

    prompt: str
    votes: tuple[Completion, ...] = ()
    greedy: tuple[Completion, ...] = ()
    """The greedy answer, if there is one."""
    passes: tuple[tuple[str, Answers], ...] = ()
    """What the label source asked about it, each prompt by its id."""
    asked: tuple[tuple[str, str] | None, ...] = ()
    """Per vote, id and prompt of what it answers, if that is not the question itself."""
    policies: tuple[int | None, ...] = ()
    """Per vote, which policy wrote it, where each agent has its own."""

    def completions(self) -> Iterator[Completion]:
        """Yield all completions, in the order of the file."""
        yield from (*self.votes, *self.greedy)
        for _, replies in self.passes:
            yield from replies.completions()

    @classmethod
    def of(cls, group: CompletionGroup) -> Answers:
        """Take the answers out of a sampled group."""
        greedy = () if group.greedy is None else (group.greedy,)
        passes = tuple((p.question.id, cls.of(p)) for p in group.passes)
        turns = [c.turn for c in group.completions]
        prompts = [None if turn is None else turn.asked for turn in turns]
        asked = tuple(None if q is None else (q.id, q.prompt) for q in prompts)
        policies = tuple(None if turn is None else turn.policy for turn in turns)
        return cls(group.question.prompt, group.completions, greedy, passes, asked, policies)

    def itself(self, policy: int | None = None) -> Answers:
        """Keep the votes that answer the question itself, of that policy where each has its own."""
        every = zip(self.votes, self.asked, self.policies, strict=True)
        return self._replace(votes=tuple(v for v, of, by in every if of is None and by == policy))

    def later(self) -> Iterator[tuple[str, Answers]]:
        """Yield the prompts of later turns by id, each with the one answer to it."""
        for vote, of in self._by_prompt():
            if of is not None:
                yield of[0], Answers(of[1], (vote,))

    def _by_prompt(self) -> Iterator[tuple[Completion, tuple[str, str] | None]]:
        return zip(self.votes, self.asked, strict=True)


def digest_of(answers: dict[str, Answers]) -> str:
    """Compute a digest of all that a step's jsonl says of its questions and answers, in order."""
    said = [_all_said(question, found) for question, found in answers.items()]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _all_said(question: str, found: Answers) -> list[Any]:
    asked = (() if of is None else of for of in found.asked)
    wrote = (() if policy is None else (policy,) for policy in found.policies)
    votes = [[*_said(c), *of, *by] for c, of, by in zip(found.votes, asked, wrote, strict=True)]
    said = [question, found.prompt, votes]
    said += [[_said(c)] for c in found.greedy]
    return [*said, *([_all_said(id, replies)] for id, replies in found.passes)]


def _said(completion: Completion) -> list[str | float]:
    said: list[str | float] = [completion.text, completion.finish_reason]
    return said if completion.temperature is None else [*said, completion.temperature]
