"""Training as a way to spend tokens: what the points of a run cost, and which run it may be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from results import result
from rich.console import Console
from runs import make_run

from ttrl.report.display import Display
from ttrl.report.results import results_json
from ttrl.run.run_folder import RunFolder
from ttrl.scaling.points import Point
from ttrl.scaling.training import points_of, refuse_other_run, settings_of_run, trained_points
from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError

SPENT = {"rollout/tokens": 100, "policy/tokens": 30, "time/rollout_s": 2.0, "time/update_s": 1.0}
SKIPPED = {"rollout/tokens": 60, "time/rollout_s": 1.0, "time/update_s": 0.0}
"""A step whose votes taught nothing."""
OPTIONS = ["evaluation.samples=4"]


def test_what_a_run_has_spent_is_shared_by_its_questions(tmp_path: Path) -> None:
    """Two questions, which are answered once or four times with 5 tokens, before and after."""
    run = tmp_path / "run"
    record = make_run(run, [SPENT, SKIPPED], overrides=OPTIONS)
    for step, right in ((0, [0.25, 0.5]), (1, [0.5, 0.75]), (2, [1.0, 0.75])):
        found = result("m", right, "train", maj_4=[0.0, 1.0], response_tokens=[4.0, 6.0])
        held_out = result("m", [0.0, 0.0], "held_out", response_tokens=[9.0, 9.0])
        (run / "evaluations" / f"step_{step:05d}.json").write_text(
            results_json([replace(measured, step=step) for measured in (found, held_out)])
        )
    votes = (0.0, 1.0)
    assert list(points_of(record)) == [
        Point("training", 0, (0.25, 0.5), 5.0),
        Point("training, majority", 0, votes, 20.0),
        Point("training", 1, (0.5, 0.75), 50 + 5.0, trained=15.0, seconds=1.5),
        Point("training, majority", 1, votes, 50 + 20.0, trained=15.0, seconds=1.5),
        Point("training", 2, (1.0, 0.75), 80 + 5.0, trained=15.0, seconds=2.0),
        Point("training, majority", 2, votes, 80 + 20.0, trained=15.0, seconds=2.0),
    ]


def test_what_all_agents_were_trained_on_counts(tmp_path: Path) -> None:
    """30 tokens of the first policy, 50 and 4 of others; and another model's, which are none."""
    line = SPENT | {"agent_1/tokens": 50, "agent_12/tokens": 4, "critic/tokens": 1000}
    run = tmp_path / "run"
    record = make_run(run, [line], overrides=OPTIONS)
    found = result("m", [0.5, 0.5], "train", maj_4=[0.0, 1.0], response_tokens=[4.0, 6.0])
    (run / "evaluations" / "step_00001.json").write_text(results_json([replace(found, step=1)]))
    assert [point.trained for point in points_of(record)] == [42.0, 42.0]


def test_the_run_of_a_curve_measures_its_own_questions_alone() -> None:
    asked = load_settings("tiny-arithmetic", overrides=["max_steps=12", "evaluation.greedy=true"])
    run = settings_of_run(asked)
    assert (run.data.held_out, run.evaluation.every, run.evaluation.greedy) == (None, 2, False)
    often = load_settings("tiny-arithmetic", overrides=["max_steps=12", "evaluation.every=3"])
    assert settings_of_run(often).evaluation.every == 3


@pytest.mark.parametrize(
    ("others", "summary", "words"),
    [
        ([], {"steps": 9, "stopped": "collapse"}, "holds a run that is stopped"),
        (
            ["seed=1"],
            {"steps": 9, "stopped": None},
            r"of other settings; expected seed = 0 \(was 1\). Name an",
        ),
    ],
)
def test_a_run_that_is_not_the_one_is_refused(
    others: list[str], summary: dict[str, int | str | None] | None, words: str, tmp_path: Path
) -> None:
    asked = load_settings("tiny-arithmetic", overrides=OPTIONS)
    run = tmp_path / "run"
    make_run(run, [], summary=summary)
    there = settings_of_run(load_settings("tiny-arithmetic", overrides=[*OPTIONS, *others]))
    (run / "config.toml").write_text(there.to_toml())
    with pytest.raises(UserError, match=words):
        refuse_other_run(asked, run)
    (run / "config.toml").write_text(settings_of_run(asked).to_toml())
    (run / "summary.json").unlink(missing_ok=True)
    refuse_other_run(asked, run)  # it was interrupted, and goes on
    (run / "summary.json").write_text('{"steps": 9, "stopped": null}')
    refuse_other_run(asked, run)
    assert list(trained_points(asked, run, Display(Console(quiet=True)))) == []


def test_a_run_may_go_on_with_less_memory_or_more_checkpoints(tmp_path: Path) -> None:
    """As after a kill for memory: what else the folder has is not lost by it."""
    run = tmp_path / "run"
    make_run(run, [])
    then = settings_of_run(load_settings("tiny-arithmetic", overrides=OPTIONS))
    (run / "config.toml").write_text(then.to_toml())
    now = ["memory.tokens_per_batch=65536", "checkpoint.every=1", "report.every_s=1"]
    refuse_other_run(load_settings("tiny-arithmetic", overrides=[*OPTIONS, *now]), run)
    with pytest.raises(UserError, match=r"max_steps = 5 \(was None\)"):
        longer = load_settings("tiny-arithmetic", overrides=[*OPTIONS, "max_steps=5"])
        refuse_other_run(longer, run)


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_run_that_was_interrupted_goes_on_or_begins_again(
    checkpoint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = load_settings("tiny-arithmetic", overrides=OPTIONS)
    run = tmp_path / "run"
    make_run(run, [SPENT])
    monkeypatch.setattr(RunFolder, "can_go_on", lambda self: checkpoint)
    found = []

    def train(settings: Settings, *, run_dir: Path, resume: bool, console: Console) -> None:
        found.append((settings == settings_of_run(asked), run_dir == run, resume))
        assert run.exists() == checkpoint
        if not checkpoint:
            make_run(run, [SPENT])

    monkeypatch.setattr("ttrl.scaling.training.train", train)
    assert list(trained_points(asked, run, Display(Console(quiet=True)))) == []
    assert found == [(True, True, checkpoint)]


@pytest.mark.parametrize("left", ["", "rollouts", "config.toml.tmp"])
def test_a_run_of_which_only_the_folder_was_made_begins_again(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process was killed before it had written the settings, or the disk was full."""
    asked, run = load_settings("tiny-arithmetic", overrides=OPTIONS), tmp_path / "run"
    run.mkdir()
    if left == "rollouts":
        (run / left).mkdir()
    elif left:
        (run / left).write_text("name =")
    (tmp_path / "run.removed").mkdir()
    (tmp_path / "run.removed" / "model").touch()

    def train(settings: Settings, *, run_dir: Path, resume: bool, console: Console) -> None:
        assert not run_dir.exists() and not resume
        make_run(run_dir, [SPENT])

    monkeypatch.setattr("ttrl.scaling.training.train", train)
    refuse_other_run(asked, run)
    assert list(trained_points(asked, run, Display(Console(quiet=True)))) == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_of_something_else_is_no_run_that_has_begun(tmp_path: Path) -> None:
    asked, run = load_settings("tiny-arithmetic", overrides=OPTIONS), tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    (run / "rollouts" / "mine.txt").touch()
    with pytest.raises(UserError, match="exists"):
        refuse_other_run(asked, run)


def test_a_process_killed_while_it_removes_a_run_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, run = load_settings("tiny-arithmetic", overrides=OPTIONS), tmp_path / "run"
    make_run(run, [SPENT])
    (run / "config.toml").write_text(settings_of_run(asked).to_toml())

    def killed(*given: object, **options: object) -> None:
        (next(tmp_path.glob("run*")) / "config.toml").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            list(trained_points(asked, run, Display(Console(quiet=True))))
    refuse_other_run(asked, run)
