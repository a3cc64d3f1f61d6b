"""Agents that answer from a script, in workflows of several turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tiny_tokenizer import tiny_tokenizer

from ttrl.data.free_prompts import FreePrompts
from ttrl.rollout.sampling import SamplingParams
from ttrl.rollout.workflows import Conversation, OnGroup, conversation_of, make_workflow
from ttrl.settings import Settings
from ttrl.types import Completion, CompletionGroup, FinishReason, Question, Turn

TOKENIZER = tiny_tokenizer()


def settings(workflow: str = "debate", **changes: object) -> Settings:
    """Of a run in turns: ``agents``, ``rounds`` and ``votes``, and sections as mappings."""
    rollout = {name: changes.pop(name) for name in ("agents", "rounds", "votes") if name in changes}
    tables = {
        "name": "test",
        "model": {"path": "unused"},
        "data": {"train": "unused", "max_prompt_tokens": 1500},
        "policy": {"trained_samples": 1, "sequences_per_update": 1},
        "rollout": {"workflow": workflow, "max_new_tokens": 40, **rollout},
    }
    return Settings.model_validate({**tables, **changes})


def begun(settings: Settings, longest: int | None = None) -> Conversation:
    """The conversation that the settings name, with room for prompts."""
    found = conversation_of(make_workflow(settings))
    assert found is not None
    found.begin(FreePrompts(settings.data, TOKENIZER, longest or settings.longest))
    return found


def question(id: str = "q1", text: str = "What is 1 + 2?") -> Question:
    return Question(id, f"<{text}>", (1, 2, 3), text)


class Asked:
    """An `Ask`: ``reply`` says what is answered, by prompt and number of the sample."""

    def __init__(self, reply: Callable[[str, int], str], rank: int = 0, ranks: int = 1) -> None:
        self.reply, self.rank, self.ranks = reply, rank, ranks
        self.calls: list[tuple[list[Question], SamplingParams]] = []

    def __call__(
        self, questions: Sequence[Question], params: SamplingParams, on_group: OnGroup, /
    ) -> list[CompletionGroup]:
        self.calls.append((list(questions), params))
        groups = [
            CompletionGroup(q, tuple(said(self.reply(q.prompt, i)) for i in range(params.n)), 7)
            for q in questions
        ]
        for group in groups[self.rank :: self.ranks]:
            on_group(group)
        return groups


def said(text: str, turn: Turn | None = None) -> Completion:
    return Completion((5, 6), (-0.5, -0.5), text, FinishReason.STOP, turn=turn)


def in_turns(*rewarded: tuple[int, int, int, str]) -> CompletionGroup:
    """A group of answers at (trajectory, turn, agent), each with its text."""
    completions = tuple(
        said(text, Turn(t, agent, trajectory, f"role {t}"))
        for trajectory, t, agent, text in rewarded
    )
    return CompletionGroup(question(), completions, 0)


QUESTIONS = [question("q1"), question("q2", "What is 3 + 4?")]


def silent(group: CompletionGroup) -> None:
    """Told of a group, and says nothing."""


def run(
    held: Conversation, ask: Asked, questions: Sequence[Question] = QUESTIONS
) -> list[CompletionGroup]:
    return held.run(ask, questions, 4, silent)


def prompts(ask: Asked, call: int) -> list[str]:
    return [asked.prompt for asked in ask.calls[call][0]]
