"""Dynamic sampling in a run: what is asked, kept and trained on, and that it can be repeated."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from compared_runs import differences
from python_process import run_python
from rich.console import Console
from small_run import SMALL, interrupted
from step_lines import step_lines

from ttrl.data.arithmetic import question_rows
from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train
from ttrl.types import UserError

DULL = '''
from ttrl.types import Estimate

class Dull:
    """Every second answer earns something, where the first number of the question is odd."""

    def estimate(self, voted):
        odd = int(voted.group.question.id.split("+")[0]) % 2
        rewards = [float(odd and i % 2) for i in range(len(voted.agrees_G))]
        return Estimate(vote=voted.vote, rewards_G=tuple(rewards), label=voted.label)
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sixteen questions, of which every second one teaches nothing."""
    folder = tmp_path_factory.mktemp("resampling")
    rows = [{"id": str(i), "prompt": r["prompt"]} for i, r in enumerate(question_rows("train"))]
    text = "\n".join(json.dumps(row) for row in rows[:16])
    (folder / "questions.jsonl").write_text(text)
    (folder / "dull.py").write_text(DULL)
    return folder


def options(place: Path, rounds: int) -> list[str]:
    return [
        *SMALL,
        f"data.train={place}/questions.jsonl",
        "data.held_out=none",
        f"reward.estimator={place}/dull.py:Dull",
        f"rollout.resample_rounds={rounds}",
        "max_steps=3",
        "checkpoint.every=1",
        "checkpoint.keep=9",
        "optimizer.learning_rate=1e-3",
    ]


def trained(
    place: Path,
    name: str,
    *more: str,
    rounds: int = 9,
    replay: Path | None = None,
    resume: bool = False,
) -> Path:
    overrides = [*options(place, rounds), *more]
    settings = load_settings("tiny-arithmetic", overrides=overrides)
    quiet = Display(Console(quiet=True))
    train(settings, RunFolder(place / name), quiet, replay, resume=resume)
    return place / name


def rows(run: Path, step: int) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (run / "rollouts" / f"step_{step:05d}.jsonl").open()]


def metrics(run: Path) -> list[dict[str, float]]:
    return step_lines(run)


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    return trained(place, "whole")


def test_a_step_is_filled_with_questions_that_teach(whole: Path) -> None:
    for step, line in enumerate(metrics(whole), start=1):
        asked = [int(row["question"]) for row in rows(whole, step)]
        assert len(asked) == len(set(asked)) == line["rollout/questions"]
        dull = sum(i % 2 == 0 for i in asked[:4])
        assert line["rollout/replaced"] == dull
        assert line["rollout/unfilled"] == 0
        assert sum(asked[i] % 2 for i in range(len(asked))) >= 4
        # 6 of each of 4 questions, of which no answer is without an advantage
        assert line["policy/sequences"] == 24
        assert line["policy/skipped_sequences"] == 0
        # Votes are counted of all questions that were asked.
        ratios = [row["majority_ratio"] for row in rows(whole, step)]
        assert line["vote/majority_ratio"] == pytest.approx(sum(ratios) / len(ratios))
        rewards = [c["reward"] for row in rows(whole, step) for c in row["completions"]]
        assert line["reward/majority_reward"] == pytest.approx(sum(rewards) / len(rewards))
    assert sum(line["rollout/replaced"] for line in metrics(whole)) > 0


def test_one_round_leaves_open_what_it_does_not_fill(whole: Path, place: Path) -> None:
    once, never = (trained(place, f"rounds-{n}", "max_steps=1", rounds=n) for n in (1, 0))
    own = [row["question"] for row in rows(never, 1)]
    assert [row["question"] for row in rows(once, 1)][:4] == own
    dull = sum(int(i) % 2 == 0 for i in own)
    asked = [int(row["question"]) for row in rows(once, 1)]
    assert len(asked) == 4 + dull
    filled = sum(i % 2 for i in asked[4:])
    (line,) = metrics(once)
    assert (line["rollout/replaced"], line["rollout/unfilled"]) == (filled, dull - filled)
    assert 0 < filled < dull
    assert line["policy/sequences"] == 6 * (4 - dull + filled)
    (line,) = metrics(never)
    assert not {"rollout/questions", "rollout/replaced", "rollout/unfilled"} & line.keys()


def test_a_run_goes_on_bit_for_bit(whole: Path, place: Path) -> None:
    for step in (1, 2):
        left = interrupted(whole, place / f"left-{step}", step)
        trained(place, left.name, resume=True)
        assert differences(whole, left) == set()


def test_a_replay_trains_on_the_same(whole: Path, place: Path) -> None:
    again = trained(place, "again", replay=whole / "rollouts")
    for name in ("model/model.safetensors", "rollouts/step_00003.jsonl"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()
    own = trained(place, "own", rounds=0, replay=whole / "rollouts")
    assert [len(rows(own, step)) for step in (1, 2, 3)] == [4, 4, 4]
    with pytest.raises(UserError, match=r"has 0 answers to question .*rollout.resample_rounds"):
        trained(place, "absent", replay=own / "rollouts")


def test_a_stream_beside_the_update(place: Path) -> None:
    """The next step's rounds go on while this one's update does."""
    overlap = ("rollout.placement=separate", "rollout.overlap=true", "checkpoint.every=2")
    stream = (*overlap, "data.train=arithmetic:stream")
    run = trained(place, "stream", *stream, rounds=2)
    assert [line["rollout/updates_behind"] for line in metrics(run)] == [0, 1, 0]
    assert sum(line["rollout/replaced"] for line in metrics(run)) > 0
    left = interrupted(run, place / "stream-left", 2)
    trained(place, left.name, *stream, rounds=2, resume=True)
    assert differences(run, left) == set()


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
def test_two_ranks_go_the_same_rounds(whole: Path, place: Path) -> None:
    settings = [f"--set={option}" for option in options(place, rounds=9)]
    command = ("-m", "ttrl.cli", "train", "tiny-arithmetic", *settings, "--ranks=2")
    done = run_python(*command, f"--run-dir={place}/ranks")
    assert done.returncode == 0, done.stderr[-4000:]
    for step in (1, 2, 3):
        asked = [row["question"] for row in rows(place / "ranks", step)]
        assert asked == [row["question"] for row in rows(whole, step)]
    texts = [[row["completions"] for row in rows(run, 1)] for run in (place / "ranks", whole)]
    assert texts[0] == texts[1]


def test_what_cannot_be_asked_is_refused(place: Path) -> None:
    with pytest.raises(UserError, match=r"each step asks all 16 questions of data\.train"):
        trained(place, "all", "rollout.questions_per_step=16", "rollout.votes=6")
    with pytest.raises(UserError, match=r"rollout\.resample_rounds = 9 would bring the engine to"):
        trained(place, "taught", "reward.labels=teacher")
