"""How runs of known figures went, and what is said to do next."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import make_run

from ttrl.report.verdict import next_steps, verdict

RISING = [{"vote/majority_ratio": 0.25, "policy/updates": 1}, {"vote/majority_ratio": 0.75}]


@pytest.mark.parametrize(
    ("after", "kind", "reason"),
    [
        # gains 0.5, 0.4, 0.5, 0.4: mean 0.45, deviation 0.0577, so 1.96 * 0.0289
        ([0.7, 0.8, 0.7, 0.8], "better", "went from 30.0 to 75.0 % (+45.0 ± 5.7)"),
        ([0.1, 0.3, 0.1, 0.3], "worse", "went from 30.0 to 20.0 % (-10.0 ± 0.0)"),
        (
            [0.3, 0.3, 0.3, 0.3],
            "nothing learned",
            "(+0.0 ± 11.3), which may be chance, in 2 steps with 1 upd",
        ),
        ([0.0, 0.1, 0.0, 0.1], "collapse", "votes agree more, majority ratio 0.25 to 0.75"),
    ],
)
def test_by_what_was_measured(after: list[float], kind: str, reason: str, tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "r", RISING, {0: {"train": [0.2, 0.4, 0.2, 0.4]}, 2: {"train": after}}
    )
    found = verdict(run)
    assert found.kind == kind
    assert reason in found.reason
    assert "pass@1 of train" in found.reason


def test_training_questions_decide_and_held_out_ones_are_told(tmp_path: Path) -> None:
    scores = {
        0: {"train": [0.2, 0.4], "held_out": [0.5]},
        2: {"train": [0.7, 0.9], "held_out": [0.25]},
    }
    found = verdict(make_run(tmp_path / "r", RISING, scores))
    assert found.kind == "better"
    assert found.reason.endswith(", of held_out from 50.0 to 25.0 %")


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ({"policy/updates": 2, "guard/collapse": 1}, "looks like a collapse: the guard saw"),
        ({"policy/updates": 2}, "not measured: there was nothing to compare with; the majority"),
        ({"policy/updates": 0, "vote/abstention_share": 1.0}, "nothing learned: nothing was there"),
    ],
)
def test_without_an_answer_key(last: dict[str, float], said: str, tmp_path: Path) -> None:
    found = verdict(make_run(tmp_path / "r", [{"vote/majority_ratio": 0.5, **last}]))
    assert str(found).startswith(said)


def test_a_run_without_a_step(tmp_path: Path) -> None:
    assert str(verdict(make_run(tmp_path / "r", []))) == (
        "not measured: the run has not made a step"
    )


def test_what_to_do_next_fits_the_run(tmp_path: Path) -> None:
    better = make_run(
        tmp_path / "good run", RISING, {0: {"train": [0.2, 0.3]}, 2: {"train": [0.7, 0.9]}}
    )
    steps = next_steps(better, "ttrl")
    assert steps[0] == f"look at its curves and answers: ttrl show '{tmp_path / 'good run'}'"
    page = tmp_path / "good run" / "report.html"
    page.touch()
    assert next_steps(better, "ttrl")[0] == f"{steps[0]}, or open '{page}'"
    assert "--against tiny-base" in steps[1]
    assert steps[2].startswith("a real one: ")
    worse = make_run(
        tmp_path / "bad",
        RISING,
        {0: {"train": [0.7, 0.9]}, 2: {"train": [0.1, 0.1]}},
        overrides=["model.path=mine", "optimizer.learning_rate=1e-3"],
    )
    steps = next_steps(worse, "ttrl")
    assert "learning_rate=0.0002 (it was 0.001), --set guard.on_collapse=stop" in steps[1]
    assert len(steps) == 2


def test_what_may_be_chance_is_said_of_the_training_questions(tmp_path: Path) -> None:
    scores = {
        0: {"train": [0.2, 0.4], "held_out": [0.5]},
        2: {"train": [0.4, 0.2], "held_out": [1.0]},
    }
    found = verdict(make_run(tmp_path / "r", RISING, scores))
    assert found.reason == (
        "pass@1 of train went from 30.0 to 30.0 % (+0.0 ± 39.2), which may be chance, of held_out "
        "from 50.0 to 100.0 %, in 2 steps with 1 updates, 0% of the votes abstaining"
    )


def test_agents_with_a_policy_each_are_counted_together(tmp_path: Path) -> None:
    """The first has learned nothing; and there is no starting model of several to compare with."""
    steps = [{"vote/majority_ratio": 0.5, "policy/updates": 0, "agent_1/updates": 2}] * 2
    found = verdict(make_run(tmp_path / "votes", steps))
    assert found.kind == "not measured"
    scores = {0: {"train": [0.2, 0.4]}, 2: {"train": [0.4, 0.2]}}
    assert "with 4 updates" in verdict(make_run(tmp_path / "chance", steps, scores)).reason
    each, scores = ["rollout.policies=per_agent"], {0: {"train": [0.2]}, 2: {"train": [0.9]}}
    steps = [{"vote/majority_ratio": 0.5}] * 2
    run = make_run(tmp_path / "each", steps, scores, overrides=each, recipe="tiny-agents")
    command = f"ttrl eval {run.path}/model DATA --recipe {run.path}/config.toml"
    assert next_steps(run, "ttrl")[1] == f"measure it on other questions: {command}"


def test_steps_that_say_nothing_of_votes(tmp_path: Path) -> None:
    """As another program's run has them."""
    found = verdict(make_run(tmp_path / "run", [{"policy/updates": 1, "loss": 0.5}]))
    assert str(found) == "not measured: the lines of its steps say nothing of votes"
    scores = {0: {"train": [1.0, 1.0]}, 1: {"train": [0.0, 0.0]}}
    assert verdict(make_run(tmp_path / "worse", [{"loss": 0.5}], scores)).kind == "worse"
