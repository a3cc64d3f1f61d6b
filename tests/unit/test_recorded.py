"""Recorded rollouts: what comes back is what was sampled, and anything else is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_settings

from ttrl.rewards import majority_vote
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.recorded import RecordedEngine
from ttrl.rollout.sampling import SamplingParams
from ttrl.tracking import RunFolder
from ttrl.types import Completion, CompletionGroup, Estimate, FinishReason, Question, UserError

PARAMS = SamplingParams(n=3, temperature=1.0, max_new_tokens=9, stream=(0, "rollout", 1))
QUESTIONS = [Question(id, "?", (1, 2)) for id in ("a", "b")]


def _completion(rng: np.random.Generator, text: str) -> Completion:
    length = int(rng.integers(1, 9))
    logprobs = (-rng.exponential(size=length)).astype(np.float32).tolist()
    tokens = rng.integers(0, 200_000, size=length).tolist()
    reason = FinishReason.STOP if length < 8 else FinishReason.LENGTH
    return Completion(tuple(tokens), tuple(logprobs), text, reason)


@pytest.fixture
def groups() -> list[CompletionGroup]:
    rng = np.random.default_rng(0)
    texts = ("\\boxed{1}", "\ud800\n\u2028", "")
    return [
        CompletionGroup(q, tuple(_completion(rng, text) for text in texts), 1) for q in QUESTIONS
    ]


@pytest.fixture
def folder(groups: list[CompletionGroup], tmp_path: Path) -> Path:
    run = RunFolder(tmp_path / "run")
    run.create(make_settings())
    estimate = Estimate(majority_vote(["1", None, None]), (1.0, 0.0, 0.0), "1")
    run.add_step(1, groups, [estimate] * len(groups), {"step": 1})
    return run.path / "rollouts"


def test_what_comes_back_is_what_was_sampled(groups: list[CompletionGroup], folder: Path) -> None:
    pool = RolloutPool(RecordedEngine(folder))
    pool.policy_version = 1
    assert pool.sample(QUESTIONS, PARAMS) == groups
    assert pool.sample(QUESTIONS[::-1], PARAMS) == groups[::-1]


def test_rounds_come_back_too(groups: list[CompletionGroup], folder: Path) -> None:
    parts = RecordedEngine(folder).sample(QUESTIONS, replace(PARAMS, n=1, first=2))
    assert list(parts) == [(i, g.completions[2:]) for i, g in enumerate(groups)]


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"n": 4}, "step 1 has 3 answers to question 'a'; expected 4"),
        ({"stream": (0, "rollout", 2)}, "cannot read step 2"),
        ({"stream": (0, "exam", "train", 1)}, "only votes are recorded"),
    ],
)
def test_anything_else_is_refused(changes: dict, refusal: str, folder: Path) -> None:
    with pytest.raises(UserError, match=refusal):
        list(RecordedEngine(folder).sample(QUESTIONS, replace(PARAMS, **changes)))


def test_other_questions_and_folders_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="0 answers to question 'c'"):
        list(RecordedEngine(folder).sample([Question("c", "?", (1,))], PARAMS))
    with pytest.raises(UserError, match=r"there is no step_00001\.safetensors"):
        RecordedEngine(folder.parent)


@pytest.mark.parametrize("kind", ["jsonl", "safetensors"])
def test_a_broken_file_is_named(kind: str, folder: Path) -> None:
    path = folder / f"step_00001.{kind}"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"cannot read step 1 from|answers to question"):
        list(RecordedEngine(folder).sample(QUESTIONS, PARAMS))
