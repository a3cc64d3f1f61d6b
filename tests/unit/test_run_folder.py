"""What a run leaves on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from groups import estimate, group
from report_runs import small_run
from results import result
from tiny_models import make_settings

from ttrl.rollout.engines.recorded import RecordedEngine
from ttrl.run.disk import Disk
from ttrl.run.resume import refuse_finished, settings_of
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError


def add_step(folder: RunFolder, step: int, *answers: str | None, **metrics: float) -> None:
    sampled = [group(*answers, id=f"q{step}")]
    folder.keep_answers(step, sampled)
    folder.keep_estimates(step, sampled, [estimate(g) for g in sampled])
    folder.add_step({"step": step, **metrics})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.create(make_settings())
    return made


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------------------------------------
# The folder


def test_the_settings_are_written_so_that_they_can_be_read_again(folder: RunFolder) -> None:
    settings = make_settings()
    assert load_settings(str(folder.path / "config.toml")) == settings
    assert sorted(p.name for p in folder.path.iterdir()) == ["config.toml", "rollouts"]


def test_an_unfinished_run_is_not_written_to(folder: RunFolder) -> None:
    add_step(folder, 1, "1", "2")
    add_step(folder, 2, "1", "2")
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    with pytest.raises(UserError) as error:
        RunFolder(folder.path).create(make_settings(rollout={"votes": 8}))
    assert f"{folder.path} exists (unfinished, 2 steps)" in str(error.value)
    assert f"--run-dir {folder.path}-2, add --replay {folder.path}/rollouts to" in str(error.value)
    assert {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()} == before


def test_a_finished_run_is_called_finished(folder: RunFolder) -> None:
    add_step(folder, 1, "1", "2")
    folder.write_summary({"steps": 1})
    with pytest.raises(UserError, match=r"exists \(finished, 1 steps\); nothing was overwritten"):
        folder.refuse_existing()


def test_the_name_that_is_offered_is_free(folder: RunFolder) -> None:
    for i in (2, 3, 5):
        folder.path.with_name(f"run-{i}").mkdir()
    with pytest.raises(UserError, match=rf"--run-dir {folder.path}-4,"):
        folder.refuse_existing()


def test_an_empty_folder_or_a_file_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "empty").mkdir()
    for name in ("file", "empty"):
        with pytest.raises(UserError, match=rf"{name} exists \(unfinished, 0 steps\)"):
            RunFolder(tmp_path / name).refuse_existing()
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("left", ["", "step_00002.tmp", "step_00002_keep", "step_00002"])
def test_resume_is_offered_where_it_can_work(folder: RunFolder, left: str) -> None:
    (folder.checkpoints / left).mkdir(parents=True)
    with pytest.raises(UserError) as error:
        folder.refuse_existing()
    assert ("--resume" in str(error.value)) is (left == "step_00002")
    (folder.path / "config.toml").unlink()
    with pytest.raises(UserError) as error:
        folder.refuse_existing()
    assert "--resume" not in str(error.value)


def test_the_folder_that_the_program_runs_in_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"folder \. exists"):
        RunFolder(tmp_path.relative_to(tmp_path)).refuse_existing()


# ---------------------------------------------------------------------------------------------
# Steps


def test_answers_are_kept_before_they_are_judged_and_say_more_afterwards(folder: RunFolder) -> None:
    groups = [group("7", "8", "7.0", id="a"), group(None, "9", "9", id="b")]
    folder.keep_answers(3, groups)
    names = sorted(p.name for p in (folder.path / "rollouts").iterdir())
    assert names == ["step_00003.jsonl", "step_00003.safetensors"]
    a, b = lines(folder.path / "rollouts" / names[0])
    assert a == {
        "question": "a",
        "prompt": "What is 3 + 4?",
        "policy_version": 0,
        "completions": [
            {
                "text": f"So it is $\\boxed{{{answer}}}$.",
                "tokens": tokens,
                "finish_reason": "stop",
            }
            for answer, tokens in (("7", 1), ("8", 2), ("7.0", 3))
        ],
    }
    assert b["completions"][0]["text"] == "I give up."
    folder.keep_estimates(3, groups, [estimate(g) for g in groups])
    assert sorted(p.name for p in (folder.path / "rollouts").iterdir()) == names
    a, b = lines(folder.path / "rollouts" / names[0])
    assert a == {
        "question": "a",
        "prompt": "What is 3 + 4?",
        "policy_version": 0,
        "label": "7",
        "majority_ratio": pytest.approx(2 / 3),
        "tied": False,
        "undecided": 0,
        "completions": [
            {
                "text": f"So it is $\\boxed{{{answer}}}$.",
                "answer": answer,
                "reward": reward,
                "tokens": tokens,
                "finish_reason": "stop",
            }
            for answer, reward, tokens in (("7", 1.0, 1), ("8", 0.0, 2), ("7.0", 1.0, 3))
        ],
    }
    assert [c["answer"] for c in b["completions"]] == [None, "9", "9"]
    assert (b["label"], b["majority_ratio"]) == ("9", pytest.approx(2 / 3))
    assert not (folder.path / "metrics.jsonl").exists()


def test_a_finished_step_is_a_line_of_metrics(folder: RunFolder) -> None:
    folder.add_step({"step": 3, "vote/margin": 0.25})
    folder.add_step({"step": 4})
    assert lines(folder.path / "metrics.jsonl") == [{"step": 3, "vote/margin": 0.25}, {"step": 4}]


@pytest.mark.parametrize("answer", ["\ud800", "\u2028", "\x1b[31m", "\n", "\x00", '"}', "☃"])
def test_any_sampled_text_survives(folder: RunFolder, answer: str) -> None:
    """Lone surrogates, which UTF-8 cannot hold, and whatever some reader takes for a new line."""
    add_step(folder, 1, answer, "2")
    raw = (folder.path / "rollouts" / "step_00001.jsonl").read_bytes()
    assert raw.isascii()
    assert raw.count(b"\n") == 1
    text = json.loads(raw)["completions"][0]["text"]
    assert text == f"So it is $\\boxed{{{answer}}}$."


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_json_cannot_hold_is_an_error_and_not_written(
    folder: RunFolder, value: float
) -> None:
    add_step(folder, 1, "1", "2")
    with pytest.raises(ValueError, match="not JSON compliant"):
        add_step(folder, 2, "1", "2", loss=value)
    assert lines(folder.path / "metrics.jsonl") == [{"step": 1}]


def test_groups_without_their_estimates_are_an_error(folder: RunFolder) -> None:
    with pytest.raises(ValueError):
        folder.keep_estimates(1, [group("1", "2")], [])
    assert list((folder.path / "rollouts").iterdir()) == []


@pytest.mark.parametrize("at", range(12))
def test_whatever_stops_the_writing_no_file_is_half(
    at: int, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each change on disk that keeping a step makes: replay reads what is there, or says so."""

    class Stops(Disk):
        changes = 0

        def __getattribute__(self, name: str) -> Any:
            if name != "changes" and not name.startswith("_"):
                self.changes += 1
                if self.changes == at + 1:
                    raise OSError("power cut")
            return super().__getattribute__(name)

    monkeypatch.setattr("ttrl.run.run_folder.disk", Stops())
    with pytest.raises(OSError, match="power cut"):
        add_step(folder, 1, "1", "2")
    rollouts = folder.path / "rollouts"
    if at <= 2:  # nothing
        assert folder.last_sampled() == 0
        assert {p.suffix for p in rollouts.iterdir()} <= {".tmp"}
    elif at <= 6:  # the tokens alone
        assert folder.last_sampled() == 0
        with pytest.raises(UserError, match="cannot read step 1"):
            RecordedEngine(rollouts)
    else:
        assert folder.last_sampled() == RecordedEngine(rollouts).steps == 1
        (line,) = lines(rollouts / "step_00001.jsonl")
        assert ("label" in line) is (at == 11)
    folder.checkpoints.mkdir()
    folder.remove_after(0)
    assert list(rollouts.iterdir()) == []


def test_the_last_step_that_was_sampled_or_saved(folder: RunFolder, tmp_path: Path) -> None:
    assert (folder.last_sampled(), folder.last_saved()) == (0, 0)
    add_step(folder, 1, "1", "2")
    folder.keep_answers(2, [group("1", "2")])
    (folder.path / "rollouts" / "step_00007.jsonl.tmp").touch()
    for name in ("step_00001", "step_00012.tmp", "step_00013_mine"):
        (folder.checkpoints / name).mkdir(parents=True)
    assert (folder.last_sampled(), folder.last_saved()) == (2, 1)
    assert RunFolder(tmp_path / "none").last_sampled() == 0


# ---------------------------------------------------------------------------------------------
# Going back


@pytest.fixture
def three_steps(folder: RunFolder) -> RunFolder:
    for step in (1, 2, 3):
        add_step(folder, step, "1", "2")
    folder.checkpoints.mkdir()
    return folder


def test_going_back_removes_what_was_written_later_and_nothing_of_the_user_s(
    three_steps: RunFolder,
) -> None:
    foreign = [
        "step_00003 (copy).jsonl",
        "step_00003.jsonl.gz",
        "step_3.jsonl",
        "step_000003.jsonl",
        "step_3.jsonl.tmp",
    ]
    for name in foreign:
        (three_steps.path / "rollouts" / name).write_text("kept")
    (three_steps.path / "rollouts" / "step_00004.safetensors.tmp").touch()
    others = ["model.tmp", "model.mine.tmp", "models"]
    for name in (*others, "model", "model.abc_1234.tmp"):
        (three_steps.path / name).mkdir()
    three_steps.remove_after(1)
    names = {p.name for p in (three_steps.path / "rollouts").iterdir()}
    assert names == {"step_00001.jsonl", "step_00001.safetensors", *foreign}
    assert lines(three_steps.path / "metrics.jsonl") == [{"step": 1}]
    own = {"config.toml", "metrics.jsonl", "rollouts", "checkpoints"}
    assert {p.name for p in three_steps.path.iterdir()} == {*others, *own}


def test_what_was_measured_before_training_is_no_step(folder: RunFolder) -> None:
    folder.add_step({"step": 0, "eval/train/pass@1": 0.5})
    with pytest.raises(UserError, match=r"exists \(unfinished, 0 steps\)"):
        folder.refuse_existing()
    for step in (1, 2):
        folder.keep_evaluations(step - 1, [result("m", [0.5])])
        add_step(folder, step, "1", "2")
    folder.checkpoints.mkdir()
    (folder.path / "evaluations" / "mine.json").touch()
    folder.write_summary({"steps": 2, "stopped": None})
    assert folder.is_finished() and folder.summary()["steps"] == 2
    folder.remove_after(1)
    assert [line["step"] for line in lines(folder.path / "metrics.jsonl")] == [0, 1]
    names = {path.name for path in (folder.path / "evaluations").iterdir()}
    assert names == {"step_00000.json", "step_00001.json", "mine.json"}
    assert not folder.is_finished()  # it is to come to another end
    folder.remove_after(0)
    assert [line["step"] for line in lines(folder.path / "metrics.jsonl")] == [0]
    with pytest.raises(UserError, match=r"metrics\.jsonl has 0 steps, expected 1"):
        folder.remove_after(1)


def test_settings_are_rewritten_under_the_claim(folder: RunFolder) -> None:
    config = folder.path / "config.toml"
    longer = load_settings(str(config), overrides=["max_steps=7"])
    folder.rewrite_settings(longer)
    assert load_settings(str(config)) == longer
    shorter = load_settings(str(config), overrides=["max_steps=none"])
    folder.rewrite_settings(shorter)
    assert config.read_text() == shorter.to_toml()  # nothing of the longer text is left
    with pytest.raises(UserError, match="another process is training in it"):
        RunFolder(folder.path).claim()


@pytest.mark.parametrize("what", ["rollouts", "checkpoints", "."])
def test_a_folder_that_cannot_be_written_to_is_not_gone_back_in(
    three_steps: RunFolder, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is mounted read-only: nothing is changed before that is known."""
    victim = three_steps.path / what
    with monkeypatch.context() as patch, pytest.raises(UserError, match=f"{victim} is not there"):
        patch.setattr("os.access", lambda path, mode: path != victim)
        three_steps.remove_after(1)
    assert len(lines(three_steps.path / "metrics.jsonl")) == 3


def test_missing_steps_are_noticed_before_anything_is_changed(three_steps: RunFolder) -> None:
    before = {p: p.read_bytes() for p in three_steps.path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"metrics\.jsonl has 3 steps, expected 4"):
        three_steps.remove_after(4)
    assert {p: p.read_bytes() for p in three_steps.path.rglob("*") if p.is_file()} == before


# ---------------------------------------------------------------------------------------------
# The summary


def test_a_summary_is_whole_or_absent(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = {"before": {"pass@1": 0.25}, "steps": 2, "wall_s": 1.5}
    with pytest.raises(TypeError):
        folder.write_summary({**summary, "bad": object()})
    assert not (folder.path / "summary.json").exists()

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr("pathlib.Path.rename", _power_cut)
        folder.write_summary(summary)
    assert not (folder.path / "summary.json").exists()

    folder.write_summary(summary)
    assert json.loads((folder.path / "summary.json").read_text()) == summary
    assert not (folder.path / "summary.json.tmp").exists()


def _power_cut(*_: object) -> None:
    raise OSError("power cut")


def test_a_summary_is_strict_json(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_summary({"before": {"pass@1": math.nan}})
    assert not (folder.path / "summary.json").exists()


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ([], "--set epochs=14"),  # the recipe has 7
        (["max_steps=3"], r"--set max_steps=13 \(and epochs, where those end it first\)"),
    ],
)
def test_a_finished_run_says_which_setting_has_ended_it(
    limit: list[str], said: str, tmp_path: Path
) -> None:
    run = RunFolder(small_run(tmp_path / "run", *limit).path)
    settings = settings_of(run.path / "config.toml")
    with pytest.raises(UserError, match=f"raise where it ends: {said}$"):
        refuse_finished(run, settings)
