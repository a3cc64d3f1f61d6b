"""What does not go with questions that arrive while a run goes on, and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_tokenizer import tiny_tokenizer

from ttrl.data.sources import make_source
from ttrl.learner.optimizer import steady_rate
from ttrl.run.preflight import refuse_impossible
from ttrl.settings import OptimizerSettings, StreamSettings
from ttrl.settings.recipe import load_settings
from ttrl.system.ranks import Ranks
from ttrl.types import UserError

PER_QUESTION = (
    "stream.reset=per_question",
    "lora.rank=4",
    "rollout.questions_per_step=1",
    "policy.sequences_per_update=32",
    "stream.visits=8",
)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.source=list", "data.train=q.jsonl"], r'\[stream\] needs data.source = "stream"'),
        (
            ["data.train=hub:a/b"],
            'reads a .jsonl file, a folder or "-", got data.train = "hub:a/b"',
        ),
        (["epochs=2"], "epochs = 2 has no meaning"),
        (["stream.queue=7"], "stream.queue = 7 is less than rollout.questions_per_step = 8"),
        (["stream.idle_s=3"], "stream.idle_s = 3 needs a file or a folder"),
        (["max_steps=7", "stream.visits=2", "stream.warmup_steps=0"], "set a multiple of it"),
        (["rollout.overlap=true", "rollout.placement=separate"], "before they have come"),
        (["rollout.resample_rounds=1"], "answers each in its turn, and once"),
        (
            ["reward.labels=ground_truth", "reward.allow_ground_truth=true"],
            "answers are for metrics only",
        ),
        (
            ["optimizer.warmup_share=0.1"],
            "warmup_share = 0.1 is a share of a run's steps, and with",
        ),
        (
            ["optimizer.final_lr_share=0.5"],
            "final_lr_share = 0.5 is what the learning rate falls to",
        ),
        (["max_steps=8"], "stream.warmup_steps = 4 is for a stream without an end"),
        ([*PER_QUESTION, "lora.rank=none"], "needs lora.rank"),
        ([*PER_QUESTION, "rollout.questions_per_step=2"], "questions_per_step = 1, got 2"),
        (
            [*PER_QUESTION, "stream.visits=4"],
            "warmup_steps = 4 leaves none of the stream.visits = 4",
        ),
        ([*PER_QUESTION, "max_steps=80", "optimizer.warmup_share=0.1"], "a schedule of its own"),
        (
            [*PER_QUESTION, "algorithm=ppo"],
            'reward.advantages = "gae" would learn on from question',
        ),
        (
            [*PER_QUESTION, "reward.labels=teacher", "reward.teacher_decay=0.9"],
            "reward.teacher_decay = 0.9 would learn on",
        ),
        ([*PER_QUESTION, "loss.entropy_target=1"], "loss.entropy_target = 1.0 would learn on"),
        ([*PER_QUESTION, "guard.on_collapse=stop"], "every question begins with the first ones"),
        ([*PER_QUESTION, "checkpoint.best=majority_ratio"], "begin with the same: unset one"),
    ],
)
def test_what_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_settings("tiny-stream", overrides=overrides)


def test_where_all_questions_must_be_there() -> None:
    settings = load_settings("tiny-stream")
    with pytest.raises(UserError, match=r'data.source = "stream" is for ttrl train: here all'):
        make_source(settings, tiny_tokenizer())
    measured = load_settings("tiny-stream", data="hub:a/b")  # as by ttrl eval
    assert (measured.data.source, measured.stream) == ("list", StreamSettings())


def test_answers_of_another_run_are_to_other_questions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--replay: data.source = \"stream\" asks what arrives"):
        refuse_impossible(load_settings("tiny-stream"), tmp_path, Ranks())


def test_a_rate_that_stays_by_hand() -> None:
    own = OptimizerSettings(learning_rate=8.0)
    assert [steady_rate(step, 4, own) for step in (1, 2, 3, 4, 5, 99)] == [2, 4, 6, 8, 8, 8]
    assert [steady_rate(step, 0, own) for step in (1, 2)] == [8, 8]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["max_steps=8", "stream.warmup_steps=0", "optimizer.final_lr_share=0.5"],
        ["optimizer.final_lr_share=1.0"],  # what it is anyway
        PER_QUESTION,
        [*PER_QUESTION, "max_steps=80"],
        ["stream.visits=3", "max_steps=9", "stream.warmup_steps=0"],
        ["data.train=folder", "stream.idle_s=3"],
        ["reward.labels=teacher"],
        ["reward.labels=harmony"],
    ],
)
def test_what_is_not(overrides: list[str]) -> None:
    settings = load_settings("tiny-stream", overrides=overrides)
    assert (settings.data.source, settings.epochs) == ("stream", 1)
