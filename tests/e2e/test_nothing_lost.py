"""What was sampled is on disk before anything fails with it, and can be gone on with."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from failing_run import FullDisk
from python_process import run_python
from rich.console import Console
from safetensors.torch import load_file
from small_run import SMALL
from step_lines import step_lines

from ttrl.data.arithmetic import question_rows
from ttrl.data.sources import QuestionList
from ttrl.learner.local import LocalModel
from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.system.launch import command
from ttrl.trainer import train
from ttrl.types import Question, UserError

FAILING_RUN = str(Path(__file__).with_name("failing_run.py"))

PLUGINS = '''
from pathlib import Path
from ttrl.answers import extract_answer
from ttrl.types import Estimate

class Breaks:
    """As "majority", until two of the questions come for the second time, in step 3."""

    def estimate(self, voted):
        if voted.stream[2] == 3 and voted.group.question.id in BAD:
            raise KeyError("broken")
        return Estimate(voted.vote, tuple(map(float, voted.agrees_G)), voted.label)

def breaks(text):
    if text == Path(__file__).with_name("bad.txt").read_text():
        raise ValueError("broken")
    return extract_answer(text)
'''

OVERLAP = ("rollout.placement=separate", "rollout.overlap=true", "checkpoint.every=0")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight questions, four for each step, and with what fails."""
    folder = tmp_path_factory.mktemp("nothing_lost")
    rows = [{"id": row["id"], "prompt": row["prompt"]} for row in question_rows("train")[:8]]
    (folder / "questions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    order = QuestionList([Question(row["id"], "", ()) for row in rows], 4, seed=0)
    bad = [question.id for question in order.questions(3)[:2]]
    (folder / "plugins.py").write_text(PLUGINS.replace("BAD", str(bad)))
    return folder


def options(place: Path, *more: str) -> list[str]:
    """Four steps, two passes over the questions, saved at the end only.

    Few samples at a time, so that what fails does so before all are sampled.
    """
    data = (
        f"data.train={place}/questions.jsonl",
        "data.held_out=none",
        "data.max_prompt_tokens=99",
        "rollout.batch_size=8",
    )
    return [*SMALL, *data, "max_steps=4", *more]


def train_in(
    folder: Path, overrides: Sequence[str], replay: Path | None = None, *, resume: bool = False
) -> None:
    settings = load_settings("tiny-arithmetic", overrides=overrides)
    train(settings, RunFolder(folder), Display(Console(quiet=True)), replay, resume=resume)


def fails(folder: Path, overrides: Sequence[str], *, resume: bool = False) -> str:
    """What a run that fails says."""
    with pytest.raises(UserError) as error:
        train_in(folder, overrides, resume=resume)
    assert not (folder / "summary.json").exists()
    return str(error.value)


def records(folder: Path, step: int) -> list[dict[str, Any]]:
    lines = (folder / "rollouts" / f"step_{step:05d}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def finished(folder: Path) -> list[int]:
    return [line["step"] for line in step_lines(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model" / "model.safetensors")
    return found


def same_files(first: Path, second: Path, names: Sequence[str]) -> bool:
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """A run that does not fail."""
    train_in(place / "whole", options(place))
    return place / "whole"


@pytest.fixture(scope="module")
def two(place: Path) -> Path:
    """A run of two steps that does not fail."""
    train_in(place / "two", options(place, "max_steps=2"))
    return place / "two"


def test_an_estimator_that_raises_leaves_the_step_and_a_replay_goes_on_from_it(
    whole: Path, place: Path, tmp_path: Path
) -> None:
    failed, again = tmp_path / "failed", tmp_path / "again"
    overrides = options(place, f"reward.estimator={place}/plugins.py:Breaks")
    said = fails(failed, overrides)
    assert "failed with KeyError: 'broken'" in said and "\n" not in said
    assert said.endswith(
        f". The answers up to step 3 are in {failed}/rollouts; no checkpoint was saved. To train "
        "on its answers without sampling them again, also with other settings of [loss] or "
        f"[reward]: {command()} train {failed}/config.toml --replay {failed}/rollouts --run-dir "
        f"{failed}-2"
    )
    assert finished(failed) == [1, 2]
    assert "label" in records(failed, 2)[0]
    for ours, theirs in zip(records(failed, 3), records(whole, 3), strict=True):
        assert "label" not in ours and len(ours["completions"]) == 8
        assert [c["text"] for c in ours["completions"]] == [
            c["text"] for c in theirs["completions"]
        ]
    # The command that it names, with an estimator that works: three steps, nothing sampled.
    replay = failed / "rollouts"
    train_in(again, options(place), replay)
    assert finished(again) == [1, 2, 3]
    assert (again / "model").is_dir() and not (again / "summary.json").exists()
    with pytest.raises(UserError, match="leave --replay out"):
        train_in(again, options(place), replay, resume=True)
    # Then the fourth step is sampled, as if nothing had happened.
    train_in(again, options(place), resume=True)
    steps = [f"step_0000{step}.{kind}" for step in range(1, 5) for kind in ("jsonl", "safetensors")]
    names = ["model/model.safetensors", *(f"rollouts/{name}" for name in steps)]
    assert same_files(whole, again, names)
    assert json.loads((again / "summary.json").read_text())["steps"] == 4


def test_an_extractor_that_raises_while_votes_are_counted_leaves_whole_answers(
    whole: Path, place: Path, tmp_path: Path
) -> None:
    """With votes that end early it is asked while others are still being sampled."""
    (place / "bad.txt").write_text(records(whole, 1)[0]["completions"][0]["text"])
    early = options(place, "rollout.stop_when_decided=true", "max_steps=1")
    said = fails(tmp_path / "failed", [*early, f"answers.extract={place}/plugins.py:breaks"])
    assert "failed with ValueError: broken" in said and "The answers up to step 1 are in" in said
    assert len(records(tmp_path / "failed", 1)) == 4
    train_in(tmp_path / "again", early, tmp_path / "failed" / "rollouts")
    train_in(tmp_path / "never", early)
    names = ["model/model.safetensors", "rollouts/step_00001.jsonl"]
    assert same_files(tmp_path / "again", tmp_path / "never", names)


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (FloatingPointError("the loss is nan"), "step 2: the loss is nan. "),
        (UserError("no memory: lower memory.tokens_per_batch"), "memory.tokens_per_batch. The"),
    ],
    ids=["nan", "memory"],
)
@pytest.mark.parametrize("every", [0, 1])
def test_an_update_that_refuses_says_what_goes_on(
    every: int,
    raised: Exception,
    words: str,
    whole: Path,
    two: Path,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed, again = tmp_path / "failed", tmp_path / "again"
    overrides = options(place, f"checkpoint.every={every}")
    with monkeypatch.context() as patched:
        refuse_second_update(patched, raised)
        said = fails(failed, overrides)
    assert words in said
    assert f"The answers up to step 2 are in {failed}/rollouts" in said
    assert f"ttrl train {failed}/config.toml --replay {failed}/rollouts" in said
    resumes = "The same command with --resume goes on from step 1 (settings like memory.tokens_per"
    assert (resumes in said) is (every == 1)
    assert finished(failed) == [1]
    assert "label" in records(failed, 2)[0]  # they had been judged
    if every:
        train_in(failed, [*overrides, "memory.tokens_per_batch=512"], resume=True)
        for name, tensor in weights(whole).items():
            torch.testing.assert_close(weights(failed)[name], tensor, rtol=0, atol=1e-5)
    else:
        with pytest.raises(UserError, match=r"no complete checkpoint .* --replay .*failed/rollou"):
            train_in(failed, overrides, resume=True)
        train_in(again, overrides, failed / "rollouts")
        stopped = json.loads((again / "summary.json").read_text())["stopped"]
        assert stopped == "the recorded answers end with step 2 of 4"
        # The same learning rates: they are constant after a first step of warm-up.
        assert same_files(again, two, ["model/model.safetensors"])


def refuse_second_update(patched: pytest.MonkeyPatch, raised: Exception) -> None:
    update, begun = LocalModel.update, []

    def second(self: LocalModel, *more: Any) -> Any:
        begun.append(1)
        if len(begun) == 2:
            raise raised
        return update(self, *more)

    patched.setattr(LocalModel, "update", second)


def test_a_mistake_of_ours_is_told_the_same(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_second_update(monkeypatch, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug") as error:
        train_in(tmp_path / "failed", options(place))
    (note,) = error.value.__notes__
    assert note.startswith("The answers up to step 2 are in")


def test_a_teacher_s_run_is_not_told_to_replay(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_second_update(monkeypatch, FloatingPointError("the loss is nan"))
    said = fails(tmp_path / "failed", options(place, "reward.labels=teacher"))
    assert "--replay" not in said
    assert said.endswith(f"no checkpoint was saved. Start again with --run-dir {tmp_path}/failed-2")


def test_sigkill_during_the_update(two: Path, place: Path, tmp_path: Path) -> None:
    failed, again = tmp_path / "failed", tmp_path / "again"
    overrides = options(place, "max_steps=2")
    done = run_python(FAILING_RUN, "killed", str(failed), *overrides, gpus=True)
    assert done.returncode == -9, done.stderr
    assert finished(failed) == [1]
    train_in(again, overrides, failed / "rollouts")
    names = ["model/model.safetensors", "rollouts/step_00002.jsonl"]
    assert same_files(again, two, names)


def test_answers_that_were_sampled_ahead_are_there_as_well(place: Path, tmp_path: Path) -> None:
    """The third step's are sampled and judged by a thread, during the second one's update."""
    failed, again = tmp_path / "failed", tmp_path / "again"
    overrides = options(place, *OVERLAP, "max_steps=3")
    said = fails(failed, [*overrides, f"reward.estimator={place}/plugins.py:Breaks"])
    assert "KeyError: 'broken'" in said and "The answers up to step 3 are in" in said
    assert finished(failed) == [1, 2]
    train_in(again, overrides, failed / "rollouts")
    train_in(tmp_path / "whole", overrides)
    versions = [records(again, step)[0]["policy_version"] for step in (1, 2, 3)]
    assert versions == [1, 1, 2]
    names = ["model/model.safetensors", "rollouts/step_00003.jsonl"]
    assert same_files(again, tmp_path / "whole", names)


@pytest.mark.parametrize("more", [(), OVERLAP], ids=["", "overlap"])
def test_a_full_disk_is_one_line(
    more: Sequence[str], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttrl.run.run_folder.disk", FullDisk())
    said = fails(tmp_path / "failed", options(place, *more))
    assert said.startswith("[Errno 28] No space left on device: ") and "\n" not in said
    assert "The answers up to step 1 are in" in said
    assert finished(tmp_path / "failed") == [1]


needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)


@needs_deepspeed
def test_two_ranks(place: Path, tmp_path: Path) -> None:
    """An estimator that raises on one of them, and a replay on both."""
    failed, again, whole = (tmp_path / name for name in ("failed", "again", "whole"))
    settings = [f"--set={setting}" for setting in options(place, "max_steps=3")]
    command = ["-m", "ttrl.cli", "train", "tiny-arithmetic", *settings, "--ranks", "2"]
    breaks = f"--set=reward.estimator={place}/plugins.py:Breaks"
    done = run_python(*command, breaks, "--run-dir", str(failed), gpus=True)
    assert done.returncode != 0
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("ttrl: ")]
    assert "KeyError: 'broken'" in line and "The answers up to step 3 are in" in line
    assert line.endswith(f"--run-dir {failed}-2 --ranks 2")
    for folder, more in ((again, ["--replay", str(failed / "rollouts")]), (whole, [])):
        done = run_python(*command, *more, "--run-dir", str(folder), gpus=True)
        assert done.returncode == 0, done.stderr[-4000:]
    names = ["model/model.safetensors", "rollouts/step_00003.jsonl"]
    assert same_files(again, whole, names)


@needs_deepspeed
@pytest.mark.parametrize("more", [(), OVERLAP], ids=["", "overlap"])
def test_a_full_disk_ends_two_ranks(more: Sequence[str], place: Path, tmp_path: Path) -> None:
    """Neither waits for the other, in whichever thread it is."""
    arguments = ("full disk", str(tmp_path / "failed"), *options(place, *more))
    done = run_python(FAILING_RUN, *arguments, ranks=2, gpus=True)
    assert done.returncode != 0
    errors = {x.name: x.read_text() for x in tmp_path.glob("error_of_rank_*.txt")}
    assert sorted(errors) == ["error_of_rank_0.txt", "error_of_rank_1.txt"], done.stderr[-4000:]
    assert all(x.startswith("[Errno 28] No space left on device") for x in errors.values())
    assert all("The answers up to step 1 are in" in x for x in errors.values())
    assert finished(tmp_path / "failed") == [1]
