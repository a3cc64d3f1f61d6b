"""A run that was killed and continued is the run that was not, bit for bit."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from compared_runs import differences
from python_process import run_python
from resumable import overrides_in, prepare, train_here
from rich.console import Console
from safetensors.torch import load_file, save_file
from small_run import interrupted
from step_lines import step_lines

from ttrl.learner.optimizer import learning_rate
from ttrl.learner.policy_objective import PolicyObjective
from ttrl.learner.trained_model import KINDS
from ttrl.models.pretrained import TINY_BASE
from ttrl.report.display import Display
from ttrl.run import saving, stateful
from ttrl.run.disk import Disk
from ttrl.run.resume import find_start
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.system.versions import versions
from ttrl.trainer import train
from ttrl.types import UserError

KILLED_RUN = str(Path(__file__).with_name("killed_run.py"))
PARTS = {"generators": (stateful, "restore_globals"), "objective": (PolicyObjective, "load_state")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight questions and an estimator that draws random numbers."""
    return prepare(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """An uninterrupted run."""
    train_here(place / "whole", overrides_in(place))
    return place / "whole"


@pytest.fixture(scope="module")
def killed(place: Path) -> Path:
    """The same, killed in its third step: the checkpoint of the second is the only one."""
    arguments = (str(place / "killed"), "3", *overrides_in(place))
    done = run_python(KILLED_RUN, *arguments, gpus=True)
    assert done.returncode == -9, done.stderr
    names = [path.name for path in (place / "killed" / "checkpoints").iterdir()]
    assert names == ["step_00002"]
    return place / "killed"


@pytest.fixture
def left(killed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed, tmp_path / "left"))


def test_sigkill_and_resume(whole: Path, left: Path, place: Path) -> None:
    # That of step 0, three, and a half.
    assert len((left / "metrics.jsonl").read_text().splitlines()) == 5
    screen = train_here(left, overrides_in(place), resume=True)
    assert "resuming from step 2" in screen
    assert "step 3/4" in screen and "step 2/4" not in screen
    assert "round otherwise" not in screen
    assert differences(whole, left) == set()


@pytest.mark.parametrize("part", PARTS)
def test_a_run_that_forgets_a_part_differs(
    part: str, whole: Path, left: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the comparison above would notice."""
    monkeypatch.setattr(*PARTS[part], lambda *_: None)
    train_here(left, overrides_in(place), resume=True)
    found = differences(whole, left)
    assert {"model", "metrics", f"state/{part}", "step_00004/rank_00000.safetensors"} <= found
    assert "rollouts/step_00002.jsonl" not in found


def test_saving_changes_nothing(whole: Path, place: Path, tmp_path: Path) -> None:
    never = tmp_path / "never"
    train_here(never, overrides_in(place, "checkpoint.every=0"))
    assert not (never / "checkpoints").exists()
    shutil.copytree(whole / "checkpoints", never / "checkpoints")  # for the comparison
    assert differences(whole, never) == set()


def test_a_damaged_checkpoint_is_passed_over(whole: Path, place: Path, tmp_path: Path) -> None:
    run = interrupted(whole, tmp_path / "damaged", step=4)
    victim = run / "checkpoints" / "step_00004" / "rank_00000.safetensors"
    os.truncate(victim, 1000)
    screen = train_here(run, overrides_in(place), resume=True)
    assert "not a complete checkpoint: step_00004: rank_00000.safetensors has 1000 bytes" in screen
    assert "resuming from step 2" in screen
    assert differences(whole, run) == set()


def test_after_the_last_step_only_the_end_is_missing(
    whole: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = interrupted(whole, tmp_path / "ended", step=4)
    made = versions("of old")
    monkeypatch.setattr("ttrl.trainer.versions", lambda kernels: made | {"torch": "9.9"})
    screen = train_here(run, overrides_in(place), resume=True)
    said = " ".join(screen.split())
    assert re.search(r"continuing with kernels of old \(was \w+\), torch 9\.9 \(was 2", said), said
    assert "they may round otherwise" in said
    assert "resuming from step 4" in screen and "step 4/4" not in screen
    assert differences(whole, run) == set()


def test_a_full_disk_ends_the_run_and_it_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything that has a state: a moving teacher, kept weights, a best checkpoint."""
    options = overrides_in(
        place,
        "reward.estimator=majority",
        "rollout.questions_per_step=4",
        "policy.sequences_per_update=12",
        "reward.labels=teacher",
        "reward.teacher_decay=0.5",
        "guard.on_collapse=stop",
        "guard.flip_rate=1",
        "checkpoint.best=majority_ratio",
        "max_steps=6",
    )
    train_here(tmp_path / "whole", options)

    class FullDisk(Disk):
        def write(self, path: Path, content: Any) -> None:
            if path.parent.name.startswith("step_00004"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            super().write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(saving, "disk", FullDisk())
        with pytest.raises(UserError, match=r"checkpoint of step 4 .* No space left on device"):
            train_here(tmp_path / "left", options)
    screen = train_here(tmp_path / "left", options, resume=True)
    assert "not a complete checkpoint: step_00004.tmp: its writing was not finished" in screen
    assert "resuming from step 2" in screen
    assert differences(tmp_path / "whole", tmp_path / "left") == set()
    earlier, last = (tmp_path / "left" / "checkpoints" / f"step_0000{step}" for step in (4, 6))
    keys = [key.split("/") for key in load_file(last / "rank_00000.safetensors")]
    assert {part for part, *_ in keys} == {"policy", "snapshots", "labels"}
    assert {kind for part, kind, *_ in keys if part == "policy"} == {*KINDS}
    assert {place for part, place, *_ in keys if part == "snapshots"} == {"0", "1"}
    states = [json.loads((folder / "state.json").read_text()) for folder in (earlier, last)]
    assert states[1]["parts"]["snapshots"] == [4, 6]
    assert (
        states[0]["parts"]["generators"] == states[1]["parts"]["generators"]
    )  # nothing of ours draws from them


def test_steps_without_voters_are_counted_on(place: Path, tmp_path: Path) -> None:
    """The third in a row ends the run, whether or not it was killed after the second."""
    (tmp_path / "never.py").write_text("def never(text):\n    return None\n")
    silent = (f"answers.extract={tmp_path}/never.py:never", "guard.abstaining_steps=3")
    options = overrides_in(place, "reward.estimator=majority", *silent, "max_steps=8")
    train_here(tmp_path / "whole", options)
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert (summary["steps"], summary["stopped"][:28]) == (3, "step 3: for 3 steps in a row")
    left = interrupted(tmp_path / "whole", tmp_path / "left", step=2)
    train_here(left, options, resume=True)
    assert differences(tmp_path / "whole", left) == set()


def test_a_finished_run_makes_more_steps(whole: Path, place: Path, tmp_path: Path) -> None:
    """With the rate of the longer run; all that it had done stays, and its end is made again."""
    run = Path(shutil.copytree(whole, tmp_path / "extended"))
    before = {path.name: path.read_bytes() for path in (run / "rollouts").iterdir()}
    longer = [*overrides_in(place), "max_steps=6"]
    screen = train_here(run, longer, resume=True)
    assert "continuing with another max_steps = 6 (was 4)" in screen
    assert "resuming from step 4" in screen and "step 5/6" in screen
    lines = step_lines(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[:4] == step_lines(whole)
    settings = load_settings(str(run / "config.toml"))
    assert settings == load_settings("tiny-arithmetic", overrides=longer)
    assert lines[4]["policy/learning_rate"] == learning_rate(5, 6, settings.optimizer)
    after = {path.name: path.read_bytes() for path in (run / "rollouts").iterdir()}
    assert before.items() < after.items()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["stopped"]) == (6, None)
    weights = [load_file(f / "model" / "model.safetensors") for f in (whole, run)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # Of the same end, or an earlier one, there is nothing to make.
    with pytest.raises(UserError, match=r"is finished, .* --set max_steps=16 \(and epochs"):
        _start(run, longer)
    with pytest.raises(UserError, match="has made 6 steps, and max_steps, epochs and questions al"):
        train_here(run, [*longer, "max_steps=5"], resume=True)
    assert (run / "summary.json").exists()


def _start(folder: Path, overrides: Sequence[str]) -> None:
    settings = load_settings("tiny-arithmetic", overrides=overrides)
    with RunFolder(folder) as run:
        find_start(settings, run, Display(Console(file=io.StringIO())))


def test_what_cannot_be_continued(whole: Path, left: Path, place: Path) -> None:
    options = overrides_in(place)
    with pytest.raises(UserError, match=r"there is no run in .*nowhere"):
        _start(place / "nowhere", options)
    with pytest.raises(UserError, match=r"whole is finished"):
        _start(whole, options)
    other = [*options, "seed=1", "rollout.votes=9", "max_steps=8", "checkpoint.keep=5"]
    with pytest.raises(UserError, match=r"rollout.votes = 9 \(was 8\); seed") as refused:
        _start(left, other)
    assert "seed = 1 (was 0)" in str(refused.value)
    assert "checkpoint.keep" not in str(refused.value)
    assert "What may differ: checkpoint.*, limits.*," in str(refused.value)
    _start(left, [*options, "checkpoint.keep=5", "checkpoint.every=3", "rollout.stuck_after_s=999"])
    shutil.rmtree(left / "checkpoints")
    with pytest.raises(UserError, match=r"no complete checkpoint \(nothing was saved\): start"):
        _start(left, options)


def test_a_run_that_still_goes_is_left_alone(left: Path, place: Path) -> None:
    before = {path: path.read_bytes() for path in left.rglob("*") if path.is_file()}
    with RunFolder(left) as other:
        other.claim()
        with pytest.raises(UserError, match="another process is training in it"):
            train_here(left, overrides_in(place), resume=True)
    assert {path: path.read_bytes() for path in left.rglob("*") if path.is_file()} == before
    _start(left, overrides_in(place))  # the claim has ended


def test_a_new_run_claims_its_folder(tmp_path: Path) -> None:
    config = tmp_path / "run" / "config.toml"
    lock = f"import fcntl; fcntl.flock(open({str(config)!r}, 'ab'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with RunFolder(config.parent) as folder:
        folder.create(load_settings("tiny-arithmetic"))
        assert "BlockingIOError" in run_python("-c", lock).stderr
    assert run_python("-c", lock).returncode == 0


def test_a_replay_goes_on_as_one_and_nothing_else_does(whole: Path, place: Path) -> None:
    options = overrides_in(place)
    settings = load_settings("tiny-arithmetic", overrides=options)
    folder, quiet = place / "replayed", Display(Console(quiet=True))
    train(settings, RunFolder(folder), quiet, whole / "rollouts")
    left = interrupted(folder, place / "replay-left", step=2)
    with pytest.raises(UserError, match="give --replay as well"):
        train_here(left, options, resume=True)
    train(settings, RunFolder(left), quiet, whole / "rollouts", resume=True)
    assert differences(folder, left) == set()
    ended = interrupted(folder, place / "replay-ended", step=4)
    train(settings, RunFolder(ended), quiet, whole / "rollouts", resume=True)
    assert differences(folder, ended) == set()
    other = interrupted(whole, place / "whole-left", step=2)
    with pytest.raises(UserError, match="leave --replay out"):
        train(settings, RunFolder(other), quiet, whole / "rollouts", resume=True)


def test_other_questions_are_noticed(left: Path, place: Path) -> None:
    before = (left / "metrics.jsonl").read_bytes()
    questions = place / "questions.jsonl"
    text = questions.read_text()
    try:
        questions.write_text(text.replace("What", "Which", 1))
        assert questions.read_text() != text
        with pytest.raises(UserError, match=r"data.train is not what it was"):
            train_here(left, overrides_in(place), resume=True)
    finally:
        questions.write_text(text)
    assert (left / "metrics.jsonl").read_bytes() == before


def _change(checkpoint: Path, changes: dict[str, Any]) -> None:
    """Change what was saved beside the tensors, and its digest with it."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    state = json.loads((checkpoint / "state.json").read_text())
    for key, value in changes.items():
        *places, last = key.split(".")
        table = state
        for place in places:
            table = table[place]
        table[last] = table[last] | value if isinstance(value, dict) else value
    text = json.dumps(state).encode()
    (checkpoint / "state.json").write_bytes(text)
    entry = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    manifest["files"]["state.json"] = entry
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"identity.settings": {"seed": 5}}, r"other settings: seed = 0 \(was 5\)"),
        ({"identity.settings": {"seed": "x"}}, "holds something else than ttrl saves"),
        ({"identity.model": None}, "holds something else"),
        ({"step": 1}, "holds something else than ttrl saves: .* step 1"),
        ({"parts.policy": {"steps_taken": "many"}}, "holds something else"),
        ({"parts.history": {"q": [[1]]}}, "holds something else"),
        ({"parts.measured": {"before": [1]}}, "holds something else"),
        ({"parts.generators": []}, "holds something else"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_run_or_of_no_run(
    changes: dict[str, Any], problem: str, left: Path, place: Path
) -> None:
    _change(left / "checkpoints" / "step_00002", changes)
    before = {path: path.read_bytes() for path in left.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"step_00002 .*{problem}"):
        train_here(left, overrides_in(place), resume=True)
    assert {path: path.read_bytes() for path in left.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("what", ["one of the weights", "the configuration"])
def test_another_starting_model_is_noticed(
    what: str, left: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in no checkpoint where only adapters are trained, nor as the reference of a KL term."""
    base = Path(shutil.copytree(TINY_BASE, tmp_path / "base"))
    if what == "the configuration":
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}))
    else:
        weights = load_file(base / "model.safetensors")
        weights["model.norm.weight"] *= 1.01
        save_file(weights, base / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr("ttrl.models.pretrained.TINY_BASE", base)
    with pytest.raises(UserError, match=f"{what} of model.path = 'tiny-base' is not what it was"):
        train_here(left, overrides_in(place), resume=True)


def test_a_folder_that_cannot_be_gone_on_with(left: Path, place: Path) -> None:
    """Known before the model is loaded."""
    options = overrides_in(place)
    shutil.move(left / "rollouts", left / "away")
    with pytest.raises(UserError, match="rollouts is not there"):
        _start(left, options)
    shutil.move(left / "away", left / "rollouts")
    os.truncate(left / "metrics.jsonl", 10)
    with pytest.raises(UserError, match=r"metrics\.jsonl has 0 steps, expected 2"):
        _start(left, options)
    config = left / "config.toml"
    config.write_text(config.read_text().replace("votes = 8", "votes = -8"))
    with pytest.raises(UserError, match=rf"{config}: rollout\.votes = -8"):
        _start(left, options)


needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)


@needs_deepspeed
def test_two_ranks(place: Path, tmp_path: Path) -> None:
    """Killed and continued on two ranks, bit for bit; and continued on one."""
    overrides = overrides_in(place, "reward.estimator=majority", "rollout.questions_per_step=2")
    settings = [f"--set={setting}" for setting in overrides]
    command = ["-m", "ttrl.cli", "train", "tiny-arithmetic", *settings, "--ranks", "2"]
    done = run_python(*command, "--run-dir", str(tmp_path / "whole"), gpus=True)
    assert done.returncode == 0, done.stderr[-4000:]
    arguments = (str(tmp_path / "left"), "3", *overrides)
    dead = run_python(KILLED_RUN, *arguments, ranks=2, gpus=True)
    assert dead.returncode != 0 and "SIGKILL" in dead.stderr
    shutil.copytree(tmp_path / "left", tmp_path / "alone")

    done = run_python(*command, "--run-dir", str(tmp_path / "left"), "--resume", gpus=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "resuming from step 2" in done.stdout
    assert differences(tmp_path / "whole", tmp_path / "left") == set()
    written = sorted(p.name for p in (tmp_path / "left/checkpoints/step_00004").glob("rank_*"))
    assert written == ["rank_00000.safetensors", "rank_00001.safetensors"]

    begun = load_file(TINY_BASE / "model.safetensors")
    train_here(tmp_path / "alone", overrides, resume=True)
    two, one = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "alone")
    )
    assert two.keys() == one.keys()
    for name in two:  # the same steps, but their sums are in another order
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5)
    assert max((two[name] - begun[name]).abs().max() for name in two) > 2e-4
