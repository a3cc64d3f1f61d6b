"""Recorded rollouts: what a run sampled, kept whole, and an engine that samples it again.

Beside the readable answers of a step (``step_00001.jsonl``, see `ttrl.run.run_folder`) lies
``step_00001.safetensors``: the token ids (int32) and log-probs (float32) of all its completions,
one after the other, and their lengths; 8 bytes a token. A question's votes, of all turns, come
first, then its greedy answer, then what the label source asked about it. Where the likeliest
tokens of each place were noted, their counts, ids and log-probs are there as well: 2 bytes a token,
and 8 for each of them.
Its metadata hold a digest of what the other file says, so that a record that was edited does not
train another policy without a word.

Both are written when the step has been sampled, so a step whose votes could not be counted, or
whose update failed, is recorded like any other. What the votes say (label, answers, rewards) is
added to the readable file when it is known; nothing here reads it.
"""

from __future__ import annotations

import json
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from os.path import commonprefix
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ttrl.rollout.engines.recorded_answers import Answers, digest_of
from ttrl.rollout.sampling import SamplingParams
from ttrl.system.paths import ROLLOUT_NAME, step_file
from ttrl.types import Completion, CompletionGroup, FinishReason, Question, UserError
from ttrl.types.top_logprobs import TopLogprobs

T = TypeVar("T")

NOT_NOTED, NOTED, WHOLE = range(3)
"""What is known of a completion's likeliest tokens: nothing, some, all that could be drawn."""

ABOVE_ZERO = 1e-4
"""How far rounding may lift a log-prob of an almost certain token."""


def tokens_of(groups: Sequence[CompletionGroup]) -> bytes:
    """Write the token ids and log-probs of these groups as the content of a safetensors file."""
    answers = {group.question.id: Answers.of(group) for group in groups}
    completions = [c for said in answers.values() for c in said.completions()]
    ids = chain.from_iterable(c.token_ids for c in completions)
    logprobs = chain.from_iterable(c.logprobs for c in completions)
    content: bytes = save(
        {
            "token_ids": np.fromiter(ids, dtype=np.int32),
            "logprobs": np.fromiter(logprobs, dtype=np.float32),
            "lengths": np.array([len(c.token_ids) for c in completions], dtype=np.int32),
            **_noted(completions),
        },
        {"digest": digest_of(answers)},
    )
    return content


def _noted(completions: Sequence[Completion]) -> dict[str, Any]:
    """Return the likeliest tokens of all completions as arrays; none where none were noted."""
    tops = [c.top_logprobs for c in completions]
    known = [top for top in tops if top is not None]
    if not known:
        return {}
    kinds = [NOT_NOTED if top is None else WHOLE if top.whole else NOTED for top in tops]
    return {
        "top_kinds": np.array(kinds, dtype=np.uint8),
        "top_counts": np.concatenate([np.array(top.counts, dtype=np.uint16) for top in known]),
        "top_ids": np.concatenate([np.array(top.ids, dtype=np.int32) for top in known]),
        "top_logprobs": np.concatenate([np.array(top.logprobs, dtype=np.float32) for top in known]),
    }


class RecordedEngine:
    """Samples what a run sampled; see `ttrl.rollout.engines.base.Engine` for the protocol.

    Same settings and data, so the same questions in the same steps: then training on the record
    gives the same weights as the run that it was made in. The votes are recorded, greedy answers
    that they were compared with, and replies that a label source asked for.
    """

    def __init__(self, folder: Path) -> None:
        """Read from the ``rollouts`` folder of a run.

        Raises:
            UserError: if it holds no recorded step, or one that is not whole.
        """
        self.folder = folder
        self._step = 0
        self._answers: dict[str, Answers] = {}
        if not step_file(folder, 1, "safetensors").is_file():
            raise UserError(
                f"--replay {folder}: there is no {step_file(folder, 1, 'safetensors').name}; "
                "expected the rollouts folder of a run"
            )
        # What can be seen without reading the answers is seen before hours of training.
        named = (ROLLOUT_NAME.fullmatch(path.name) for path in folder.iterdir())
        self.steps = max(int(name[1]) for name in named if name)
        """The number of steps that were sampled; the last one need not have been finished."""
        for step in range(1, self.steps + 1):
            self._check_whole(step)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load nothing: the answers are recorded."""

    def sleep(self) -> None:
        """Give nothing back: the engine has no memory of its own."""

    def close(self) -> None:
        """End nothing: the engine has started nothing."""

    def sample(
        self, questions: Sequence[Question], params: SamplingParams
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        """Yield (index of the question, its recorded completions).

        Raises:
            UserError: if anything else is asked for than was recorded.
        """
        answers, kind = self._of(params)
        for i, question in enumerate(questions):
            prompt, recorded, *_ = answers.get(question.id, Answers(question.prompt))
            if prompt != question.prompt:
                at = len(commonprefix([prompt, question.prompt]))  # noqa: RUF071  # of any text
                raise UserError(
                    f"--replay {self.folder}: the prompt of question {question.id!r} in step "
                    f"{self._step} differs from character {at} on: {prompt[at : at + 40]!r}, "
                    f"expected {question.prompt[at : at + 40]!r}. Replay with the config.toml and "
                    "the data of the run that it was recorded in"
                )
            completions = recorded[params.first : params.first + params.n]
            if len(completions) < params.n:
                raise UserError(
                    f"--replay {self.folder}: step {self._step} has {len(recorded)} {kind} to "
                    f"question {question.id!r}; expected {params.first + params.n}. Replay with "
                    "the config.toml of the run that it was recorded in, or, where other rewards "
                    "ask for other questions, with rollout.resample_rounds = 0; a run that ends "
                    "before it asks for replies leaves its last step unfinished: then remove both "
                    "files of that step"
                )
            if any(not _as_noted(completion, params) for completion in completions):
                raise UserError(
                    f"--replay {self.folder}: the answers to question {question.id!r} in step "
                    f"{self._step} do not say what else could have been drawn, which rollout.top_k "
                    "and other settings of this run need. Replay with the config.toml of the run "
                    "that it was recorded in"
                )
            yield i, completions

    def _of(self, params: SamplingParams) -> tuple[Mapping[str, Answers], str]:
        """Return the answers that the stream names, by question, and what they are."""
        match params.stream:
            case (_, "rollout", int(step)):
                return {id: a.itself() for id, a in self.answers(step).items()}, "answers"
            case (_, "rollout", int(step), "policy", int(policy)):
                found = self.answers(step).items()
                return {id: a.itself(policy) for id, a in found}, f"answers of agent {policy}"
            case (_, "rollout", int(step), "turn", int(turn)):
                later = chain.from_iterable(a.later() for a in self.answers(step).values())
                return dict(later), f"answers of turn {turn}"
            case (_, "rollout", int(step), "greedy"):
                found = self.answers(step).items()
                greedy = {id: said._replace(votes=said.greedy) for id, said in found}
                return greedy, "greedy answers"
            case (_, "free", int(step), str(name)):
                passes = [said.passes for said in self.answers(step).values()]
                return dict(chain.from_iterable(passes)), f"replies ({name})"
        raise UserError(f"--replay: only votes are recorded, but {params.stream} was asked for")

    def answers(self, step: int) -> Mapping[str, Answers]:
        """Read what was sampled in a step, by question.

        Raises:
            UserError: if it cannot be read.
        """
        if step != self._step:
            self._answers = self._read(step)
            self._step = step
        return self._answers

    def _check_whole(self, step: int) -> None:
        """Raise a UserError if a file of the step is absent or cut off."""
        tokens, lines = (step_file(self.folder, step, kind) for kind in ("safetensors", "jsonl"))
        try:
            with safe_open(tokens, "np"), lines.open("rb") as file:  # reads the header only
                file.seek(-1, 2)
                if file.read() != b"\n":
                    raise ValueError(f"{lines} ends within a line")
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(
                f"--replay: cannot read step {step} from {tokens} and {lines.name}: {error}; a run "
                "that is killed leaves its last step unfinished: then remove both files"
            ) from error

    def _read(self, step: int) -> dict[str, Answers]:
        path = step_file(self.folder, step, "safetensors")
        lines = step_file(self.folder, step, "jsonl")
        try:
            with safe_open(path, "np") as stored:
                ids, logprobs, lengths = _checked(
                    *(stored.get_tensor(name) for name in ("token_ids", "logprobs", "lengths"))
                )
                tops = _tops(stored, lengths)
                digest = (stored.metadata() or {}).get("digest")
            rows = lines.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UserError(f"--replay: cannot read step {step} from {path}: {error}") from error
        ends = np.cumsum(lengths).tolist()
        stored_answers: deque[Stored] = deque(
            (ids[begin:end], logprobs[begin:end], top)
            for begin, end, top in zip([0, *ends], ends, tops, strict=False)
        )
        found: dict[str, Answers] = {}
        for number, line in enumerate(rows, start=1):
            try:
                row = json.loads(line)
                question, said = _answers(row, stored_answers)
                if question in found:
                    raise ValueError(f"question {question!r} is there twice")
                found[question] = said
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"--replay: {lines}, line {number}: {error}; expected the file as the run "
                    "wrote it"
                ) from error
        if stored_answers or digest not in (
            None,
            digest_of(found),
        ):  # earlier versions wrote no digest
            raise UserError(
                f"--replay: {lines} does not say what was sampled with the tokens in {path.name}; "
                "expected both files as the run wrote them"
            )
        return found


Stored = tuple[Sequence[int], Sequence[float], TopLogprobs | None]
"""Tokens, log-probs and likeliest tokens of a completion."""


def _answers(row: Any, stored: deque[Stored]) -> tuple[str, Answers]:
    """Read a question and its answers from a line; what is ``stored`` of them is taken off."""

    def completion(said: Any) -> Completion:
        ids, logprobs, top = stored.popleft() if stored else ((), (), None)
        if _field(said, "tokens", int) != len(ids):
            raise ValueError("the answers have other lengths than those in the other file")
        return Completion(
            tuple(ids),
            tuple(logprobs),
            _field(said, "text", str),
            FinishReason(_field(said, "finish_reason", str)),
            _field(said, "temperature", float) if "temperature" in said else None,
            top,
        )

    question, prompt = _field(row, "question", str), _field(row, "prompt", str)
    completions = _field(row, "completions", list)
    votes = tuple(map(completion, completions))
    asked = tuple(
        (_field(c, "asked", str), _field(c, "prompt", str)) if "asked" in c else None
        for c in completions
    )
    greedy = (completion(row["greedy"]),) if "greedy" in row else ()
    replies = _field(row, "passes", list) if "passes" in row else []
    passes = tuple(_answers(reply, stored) for reply in replies)
    policies = tuple(_field(c, "policy", int) if "policy" in c else None for c in completions)
    return question, Answers(prompt, votes, greedy, passes, asked, policies)


def _as_noted(completion: Completion, params: SamplingParams) -> bool:
    """Say whether a completion notes what was asked for."""
    top = completion.top_logprobs
    return not params.noted or (top is not None and top.whole == (params.top_k > 0))


def _checked(ids: Any, logprobs: Any, lengths: Any) -> tuple[list[int], list[float], list[int]]:
    """Return the arrays as lists; a ValueError if they cannot be those of `tokens_of`."""
    for name, values, kind in (
        ("token_ids", ids, np.int32),
        ("logprobs", logprobs, np.float32),
        ("lengths", lengths, np.int32),
    ):
        if values.dtype != kind or values.ndim != 1:
            raise ValueError(
                f"{name} is {values.dtype}{list(values.shape)}, expected {kind.__name__} in one row"
            )
    if (lengths <= 0).any() or not lengths.sum(dtype=np.int64) == len(ids) == len(logprobs):
        raise ValueError(
            f"{len(ids)} token_ids and {len(logprobs)} logprobs do not divide into the lengths"
        )
    if (ids < 0).any():
        raise ValueError("token_ids has negative ones")
    if not (np.isfinite(logprobs) & (logprobs <= ABOVE_ZERO)).all():
        raise ValueError("logprobs has some that are no logarithm of a probability")
    return ids.tolist(), logprobs.tolist(), lengths.tolist()


def _tops(stored: Any, lengths: Sequence[int]) -> list[TopLogprobs | None]:
    """Return what is stored of each completion's likeliest tokens; a ValueError if it cannot be."""
    if "top_kinds" not in stored.keys():  # noqa: SIM118  # no dict
        return [None] * len(lengths)
    kinds, counts, ids, logprobs = (
        stored.get_tensor(f"top_{name}") for name in ("kinds", "counts", "ids", "logprobs")
    )
    dtypes = (kinds.dtype, counts.dtype, ids.dtype, logprobs.dtype)
    known = [n for n, kind in zip(lengths, kinds, strict=True) if kind != NOT_NOTED]
    if (
        dtypes != (np.uint8, np.uint16, np.int32, np.float32)
        or (kinds > WHOLE).any()
        or sum(known) != len(counts)
        or not counts.sum(dtype=np.int64) == len(ids) == len(logprobs)
        or (ids < 0).any()
        or not (np.isfinite(logprobs) & (logprobs <= ABOVE_ZERO)).all()
    ):
        raise ValueError("what top_kinds, top_counts, top_ids and top_logprobs say does not fit")
    tops: list[TopLogprobs | None] = []
    token, entry = 0, 0
    for kind, length in zip(kinds.tolist(), lengths, strict=True):
        if kind == NOT_NOTED:
            tops.append(None)
            continue
        own = array("H", counts[token : token + length].tolist())
        span = slice(entry, entry + sum(own))
        tops.append(
            TopLogprobs(
                own,
                array("i", ids[span].tolist()),
                array("f", logprobs[span].tolist()),
                whole=kind == WHOLE,
            )
        )
        token, entry = token + length, span.stop
    return tops


def _field(row: Any, name: str, kind: type[T]) -> T:
    """Return ``row[name]``; a ValueError if ``row`` has none of that type."""
    value = row.get(name) if isinstance(row, dict) else None
    if type(value) is not kind:  # a bool is an int too
        raise ValueError(f"expected an object whose {name!r} is of type {kind.__name__}")
    return value
