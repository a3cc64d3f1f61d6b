"""Recorded rollouts: what a run sampled, kept whole, and an engine that samples it again.

Beside the readable answers of a step (``step_00001.jsonl``, see `ttrl.tracking`) lies
``step_00001.safetensors``: the token ids (int32) and log-probs (float32) of all its completions,
one after the other, and their lengths; 8 bytes a token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ttrl.rollout.sampling import SamplingParams
from ttrl.types import Completion, CompletionGroup, FinishReason, Question, UserError


def step_file(folder: Path, step: int, kind: str) -> Path:
    """The file of a step; ``kind`` is "jsonl" or "safetensors"."""
    return folder / f"step_{step:05d}.{kind}"


def tokens_of(groups: Sequence[CompletionGroup]) -> bytes:
    """The token ids and log-probs of these groups, as the content of a safetensors file."""
    completions = [c for group in groups for c in group.completions]
    ids = chain.from_iterable(c.token_ids for c in completions)
    logprobs = chain.from_iterable(c.logprobs for c in completions)
    content: bytes = save(
        {
            "token_ids": np.fromiter(ids, dtype=np.int32),
            "logprobs": np.fromiter(logprobs, dtype=np.float32),
            "lengths": np.array([len(c.token_ids) for c in completions], dtype=np.int32),
        }
    )
    return content


class RecordedEngine:
    """Samples what a run sampled; see `ttrl.rollout.pool.Engine` for the protocol.

    Same settings and data, so the same questions in the same steps: then training on the record
    gives the same weights as the run that it was made in. Only the votes are recorded.
    """

    def __init__(self, folder: Path) -> None:
        """Read from the ``rollouts`` folder of a run.

        Raises:
            UserError: if it holds no recorded step.
        """
        self.folder = folder
        self._step = 0
        self._completions: dict[str, tuple[Completion, ...]] = {}
        if not step_file(folder, 1, "safetensors").is_file():
            raise UserError(
                f"--replay {folder}: there is no {step_file(folder, 1, 'safetensors').name}; "
                "expected the rollouts folder of a run"
            )

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Nothing to load."""

    def sleep(self) -> None:
        """Nothing to give back."""

    def close(self) -> None:
        """Nothing to end."""

    def sample(
        self, questions: Sequence[Question], params: SamplingParams
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        """Yield (index of the question, its recorded completions).

        Raises:
            UserError: if anything else is asked for than was recorded.
        """
        for i, question in enumerate(questions):
            recorded = self._of(params).get(question.id, ())
            completions = recorded[params.first : params.first + params.n]
            if len(completions) < params.n:
                raise UserError(
                    f"--replay {self.folder}: step {self._step} has {len(recorded)} answers to "
                    f"question {question.id!r}; expected {params.first + params.n}. Replay with "
                    "the config.toml of the run that it was recorded in"
                )
            yield i, completions

    def _of(self, params: SamplingParams) -> dict[str, tuple[Completion, ...]]:
        """The completions of the step that the stream names, by question."""
        match params.stream:
            case (_, "rollout", int(step)):
                if step != self._step:
                    self._completions = self._read(step)
                    self._step = step
                return self._completions
        raise UserError(f"--replay: only votes are recorded, but {params.stream} was asked for")

    def _read(self, step: int) -> dict[str, tuple[Completion, ...]]:
        path = step_file(self.folder, step, "safetensors")
        try:
            stored = load_file(path)
            ids, logprobs = iter(stored["token_ids"].tolist()), iter(stored["logprobs"].tolist())
            lengths = iter(stored["lengths"].tolist())
            lines = step_file(self.folder, step, "jsonl").read_text(encoding="utf-8").splitlines()
            completions = {}
            for row in map(json.loads, lines):
                completions[row["question"]] = tuple(
                    Completion(
                        tuple(islice(ids, n)),
                        tuple(islice(logprobs, n)),
                        answer["text"],
                        FinishReason(answer["finish_reason"]),
                    )
                    for answer, n in zip(row["completions"], lengths, strict=False)
                )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(f"--replay: cannot read step {step} from {path}: {error}") from error
        return completions
