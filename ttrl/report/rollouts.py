"""The readable answers to a set of questions: one line of JSON each, written and read.

``rollouts/step_00001.jsonl`` in a run's folder is such a file, and so is what ``ttrl eval
--save-samples`` writes. It lacks tokens and log-probs, which training needs and nobody reads; the
latter has what choosing among the answers needs of them (`ttrl.report.confidence`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ttrl.report.confidence import Confidence
from ttrl.types import (
    Completion,
    CompletionGroup,
    Estimate,
    FinishReason,
    Question,
    Turn,
    UserError,
)


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """An answer as it was written down.

    Example: ``RecordedAnswer("It is 7.", tokens=5, truncated=False, answer="7", reward=1.0)``.
    """

    text: str
    """What the model said. Hostile: never evaluated."""
    tokens: int
    """Its length in tokens."""
    truncated: bool
    """Whether it was cut off."""
    answer: str | None = None
    """What was read from it; None: nothing, or nobody looked (`RecordedGroup.judged`)."""
    reward: float | None = None
    """What it was worth; None: nobody looked."""
    votes: bool = True
    """Whether it has a vote, where the votes were counted."""
    verdict: bool | None = None
    """What a verifier says of a solution: `ttrl.types.Verdict.right`; None also of an answer."""
    is_verdict: bool = False
    """Whether it was to be a verdict, whatever it says."""
    turn: Turn | None = None
    """Where it stands among the answers of several agents; the tokens of its prompt are not
    known."""
    surprisal: float | None = None
    """Mean negative log-prob of its tokens, in nats; None: not written down."""
    confidence: Confidence | None = None
    """How sure the model was of its tokens, where the likeliest ones were noted."""

    @classmethod
    def of(cls, completion: Completion) -> RecordedAnswer:
        """Return what is written down of a completion."""
        logprobs, top = completion.logprobs, completion.top_logprobs
        return cls(
            completion.text,
            len(completion.token_ids),
            completion.finish_reason is FinishReason.LENGTH,
            surprisal=round(-fmean(logprobs), 6) if logprobs else None,
            confidence=None if top is None else Confidence.of(top),
            turn=completion.turn,
        )


@dataclass(frozen=True, slots=True)
class RecordedGroup:
    """All recorded answers to one question.

    Example: ``RecordedGroup("q1", "What is 3 + 4?", (first, second), label="7", judged=True)``.
    """

    question: str
    """Id of the question."""
    prompt: str
    """The text that the model read."""
    answers: tuple[RecordedAnswer, ...]
    """In the order of the samples."""
    greedy: RecordedAnswer | None = None
    """The most probable answer, where it was sampled, too."""
    judged: bool = False
    """Whether the votes were counted; if not, nothing below is known."""
    label: str | None = None
    """The pseudo-label; None if nothing was elected."""
    majority_ratio: float = 0.0
    """Share of all votes that the majority has."""
    tied: bool = False
    """Whether another answer had as many votes: `ttrl.types.Vote.tied`."""
    undecided: int = 0
    """Votes that were compared by their spelling only: `ttrl.types.Vote.undecided`."""
    data: str | None = None
    """Data set of the question, in a file of several of them."""

    @property
    def alone(self) -> tuple[RecordedAnswer, ...]:
        """The answers to the question by itself: those without a turn, or of the first one."""
        single = tuple(a for a in self.answers if a.turn is None)
        return single or tuple(a for a in self.answers if a.turn and a.turn.asked is None)

    @classmethod
    def of(cls, group: CompletionGroup) -> RecordedGroup:
        """Return what a file would say of a group that was just sampled."""
        return cls(
            question=group.question.id,
            prompt=group.question.prompt,
            answers=tuple(map(RecordedAnswer.of, group.completions)),
            greedy=None if group.greedy is None else RecordedAnswer.of(group.greedy),
        )


def read_groups(path: Path) -> list[RecordedGroup]:
    """Read the lines of a file of answers.

    Raises:
        UserError: if it cannot be read, or a line is not one of ours.
    """
    try:
        # No other end of a line is one of JSON's: U+2028 may stand in a text.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read answers from {path}: {error}") from error
    groups = []
    for number, line in enumerate(lines if lines != [""] else [], start=1):
        try:
            groups.append(_group(json.loads(line)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number}: {type(error).__name__}: {error}; expected an object with "
                "question, prompt and completions (text, tokens, finish_reason), as in a run's "
                "rollouts/step_00001.jsonl"
            ) from error
    return groups


def sampled_line(group: CompletionGroup) -> dict[str, Any]:
    """Write a question's answers as JSON, as far as they are known once they are sampled."""
    greedy = {} if group.greedy is None else {"greedy": _said(group.greedy)}
    passes = {"passes": list(map(sampled_line, group.passes))} if group.passes else {}
    return {
        "question": group.question.id,
        "prompt": group.question.prompt,
        "policy_version": group.policy_version,
        **greedy,
        **passes,
        "completions": [_said(c) for c in group.completions],
    }


def recorded_line(group: RecordedGroup) -> dict[str, Any]:
    """Write answers that were not judged, in a file of several data sets, as JSON."""
    greedy = {} if group.greedy is None else {"greedy": _repeated(group.greedy)}
    return {
        "data": group.data,
        "question": group.question,
        "prompt": group.prompt,
        **greedy,
        "completions": [_repeated(answer) for answer in group.answers],
    }


def judged_line(group: CompletionGroup, estimate: Estimate) -> dict[str, Any]:
    """Write a group's line with label, answers and rewards; the longest part stays the last."""
    record = sampled_line(group)
    votes = zip(estimate.vote.answers_G, estimate.rewards_G, strict=True)
    completions = [
        {"text": said["text"], "answer": answer, "reward": reward} | said
        for said, (answer, reward) in zip(record.pop("completions"), votes, strict=True)
    ]
    for said, has_vote in zip(completions, estimate.vote.voters_G or (), strict=False):
        said["votes"] = has_vote
    for i, verdict in estimate.verdicts.items():
        completions[i] |= {"verdict": verdict.right, "verdict_of": verdict.of}
    for said, label in zip(completions, estimate.labels_G or (), strict=False):
        said["label"] = label
    for said, shaped in zip(completions, estimate.shaped_G or (), strict=False):
        said["shaped"] = shaped
    for name, rewards_G in estimate.extra_rewards.items():
        for said, reward in zip(completions, rewards_G, strict=True):
            said.setdefault("extra_rewards", {})[name] = reward
    if group.greedy is not None:
        record["greedy"] |= {"reward": estimate.greedy_reward}
    vote = estimate.vote
    known = {
        "label": estimate.label,
        "majority_ratio": vote.majority_ratio,
        "tied": vote.tied,
        "undecided": vote.undecided,
    }
    return record | known | {"completions": completions}


def json_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the content of a file with one record per line."""
    # JSON escapes what UTF-8 cannot hold (sampled text may contain lone surrogates).
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()


def _said(completion: Completion) -> dict[str, Any]:
    said = {
        "text": completion.text,
        "tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
    }
    own = {} if completion.temperature is None else {"temperature": completion.temperature}
    return said | own | _place(completion.turn)


def _place(turn: Turn | None) -> dict[str, Any]:
    """Say where an answer stands among those of several agents, and what it answers."""
    if turn is None:
        return {}
    place = {"turn": turn.index, "agent": turn.agent, "trajectory": turn.trajectory}
    asked = turn.asked
    read = {} if asked is None else {"asked": asked.id, "prompt": asked.prompt, "cut": turn.cut}
    own = {} if turn.policy is None else {"policy": turn.policy}
    return place | {"role": turn.role} | own | read


def _repeated(answer: RecordedAnswer) -> dict[str, Any]:
    reason = FinishReason.LENGTH if answer.truncated else FinishReason.STOP
    said: dict[str, Any] = {
        "text": answer.text,
        "tokens": answer.tokens,
        "finish_reason": reason,
    }
    if answer.surprisal is not None:
        said["surprisal"] = answer.surprisal
    if answer.confidence is not None:
        said["confidence"] = answer.confidence.as_json()
    return said | _place(answer.turn)


def _group(line: Mapping[str, Any]) -> RecordedGroup:
    judged: dict[str, Any] = {}
    if "label" in line:
        ratio = _number(line["majority_ratio"])
        if not 0 <= ratio <= 1:
            raise ValueError(f"majority_ratio: expected a share from 0 to 1, got {ratio!r}")
        judged = {"judged": True, "label": _text_or_none(line["label"]), "majority_ratio": ratio}
        judged |= {"tied": bool(line.get("tied")), "undecided": _count(line.get("undecided", 0))}
    return RecordedGroup(
        question=_text(line["question"]),
        prompt=_text(line["prompt"]),
        answers=tuple(map(_read, _list(line["completions"]))),
        greedy=_read(line["greedy"]) if "greedy" in line else None,
        data=_text_or_none(line.get("data")),
        **judged,
    )


def _read(said: Mapping[str, Any]) -> RecordedAnswer:
    return RecordedAnswer(
        text=_text(said["text"]),
        tokens=_count(said["tokens"]),
        truncated=FinishReason(said["finish_reason"]) is FinishReason.LENGTH,
        answer=_text_or_none(said.get("answer")),
        reward=None if said.get("reward") is None else _number(said["reward"]),
        votes=bool(said.get("votes", True)),
        verdict=None if said.get("verdict") is None else bool(said["verdict"]),
        is_verdict="verdict_of" in said,
        surprisal=_number(said["surprisal"]) if "surprisal" in said else None,
        confidence=(
            Confidence.of_json(said["confidence"], said["tokens"]) if "confidence" in said else None
        ),
        turn=_turn(said) if "turn" in said else None,
    )


def _turn(said: Mapping[str, Any]) -> Turn:
    asked = None
    if "asked" in said:
        asked = Question(_text(said["asked"]), _text(said["prompt"]), ())
    return Turn(
        _count(said["turn"]),
        _count(said["agent"]),
        _count(said["trajectory"]),
        _text(said["role"]),
        asked,
        _count(said.get("cut", 0)),
        _count(said["policy"]) if "policy" in said else None,
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {value!r}")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"completions: expected a list, got {value!r}")
    return value


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)


def _count(value: object) -> int:
    if type(value) is not int or value < 0:  # true is an int, too
        raise ValueError(f"expected a whole number from 0 on, got {value!r}")
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"expected a finite number, got {value!r}")
    return float(value)  # type: ignore[arg-type]
