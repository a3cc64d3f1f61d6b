"""How runs of known figures went, and what is said to do next."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, pvariance

import pytest
from groups import group, voted
from runs import make_run

from ttrl.answers import Grader
from ttrl.evaluation.prequential import Prequential
from ttrl.report.stream_scores import Shares, StreamScores, change, stream_scores
from ttrl.report.verdict import next_steps, verdict
from ttrl.types import AnswerKey, UserError

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


# ---------------------------------------------------------------------------------------------
# Streams


def streamed(
    scored: int, first: tuple[float, float], adapted: float | None = None, **more: float
) -> list[dict[str, float]]:
    """Two steps of a stream; the first has scored nothing yet."""
    line = {
        "vote/majority_ratio": 0.75,
        "policy/updates": 1,
        "stream/questions": scored + 1,
        "stream/scored": scored,
        "stream/first_accuracy_mean": first[0],
        "stream/first_accuracy_last_third": first[1],
        "stream/majority_accuracy_mean": 0.625,
        "stream/majority_accuracy_last_third": 1.0,
    }
    if adapted is not None:
        line["stream/adapted_first_accuracy_mean"] = adapted
    return [{"vote/majority_ratio": 0.25, "policy/updates": 1}, line | more]


@pytest.mark.parametrize(
    ("steps", "kind", "reason"),
    [
        # 60 of 200 and 80 of 100 were right. By Agresti and Caffo, 61 / 202 and 81 / 102 have
        # 0.4921 between them, and a standard error of 0.0515.
        (
            streamed(300, (140 / 300, 0.8)),
            "better",
            "of 300 questions, each before it was learned from, the first sample was right in "
            "46.7 %, in the last third 80.0 %; the majority in 62.5 %, in the last third 100.0 %; "
            "the first sample +50.0 from the first two thirds to the last (95 % interval +39.1 to "
            "+59.3)",
        ),
        (streamed(300, (0.5, 0.3)), "worse", "(95 % interval -40.7 to -18.3)"),
        (streamed(300, (0.5, 0.55)), "nothing learned", "+19.2), which may be chance, in 2 steps"),
        (streamed(3, (1 / 3, 1.0)), "nothing learned", "+100.0 from the first two thirds"),
        (
            [line | {"policy/updates": 0} for line in streamed(300, (140 / 300, 0.8))],
            "nothing learned",
            "+59.3); nothing was there to learn from, in 2 steps with 0 updates",
        ),
        (streamed(1, (1.0, 1.0)), "not measured", "last third 100.0 %: too few to compare"),
        (streamed(300, (0.4, 0.1)), "collapse", "votes agree more, majority ratio 0.25 to 0.75"),
        (
            streamed(300, (0.5, 0.5), adapted=0.7),
            "better",
            "+20.0 to 70.0 % after training on the question itself (95 % interval +12.2 to +27.5)",
        ),
    ],
)
def test_a_stream_is_judged_by_answers_from_before_the_learning(
    steps: list[dict[str, float]], kind: str, reason: str, tmp_path: Path
) -> None:
    found = verdict(make_run(tmp_path / "r", steps, recipe="tiny-stream"))
    assert (found.kind, reason in found.reason) == (kind, True), found.reason


def test_further_visits_of_a_stream_hide_nothing(tmp_path: Path, grader: Grader) -> None:
    """Each question is trained on twice, and answered again and forgotten after the second time."""
    key = AnswerKey({"q1": "7", "q2": "8"}, {})
    groups = [group("7", "7", "8", id=name) for name in key.answers]
    votes, lines = [voted(of).vote for of in groups], []
    prequential = Prequential()
    for adapted in (False, True, False, True):
        more = {"vote/majority_ratio": 0.75, "policy/updates": 1.0}
        lines.append(prequential.score(groups, votes, key, grader, adapted=adapted) | more)
    run = make_run(tmp_path / "r", lines, recipe="tiny-stream")
    assert stream_scores(run) == StreamScores(4, Shares(0.5, 0.5), Shares(0.5, 0.5), 0.5)
    assert "of 4 questions" in verdict(run).reason


@pytest.mark.parametrize(
    "change",
    [
        {"stream/scored": 0},
        {"stream/scored": -2},
        {"stream/first_accuracy_mean": 2.0},
        {"stream/first_accuracy_mean": 0.0, "stream/first_accuracy_last_third": 1.0},
        {"stream/adapted_first_accuracy_mean": -0.5},
    ],
)
def test_figures_of_a_stream_that_cannot_be_are_refused(
    change: dict[str, float], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "r", streamed(300, (0.5, 0.5), **change), recipe="tiny-stream")
    with pytest.raises(UserError, match=r"metrics\.jsonl: step 2: expected one scored question"):
        verdict(run)


def test_held_out_questions_of_a_stream_are_told(tmp_path: Path) -> None:
    scores = {0: {"held_out": [0.5]}, 2: {"held_out": [0.25]}}
    steps = streamed(300, (140 / 300, 0.8))
    found = verdict(make_run(tmp_path / "r", steps, scores, recipe="tiny-stream"))
    assert found.kind == "better"
    assert found.reason.endswith("+59.3), of held_out from 50.0 to 25.0 %")
    unknown = [{"vote/majority_ratio": 0.5, "stream/questions": 9}] * 2
    found = verdict(make_run(tmp_path / "u", unknown, scores, recipe="tiny-stream"))
    assert found.reason.startswith("pass@1 of held_out went from 50.0 to 25.0 %")


def test_the_interval_of_a_change_by_sums_over_answers() -> None:
    """Variances of zeros and ones, to which one of each was added."""
    for first, second in (("1", "0"), ("110", "1"), ("1" * 30 + "0" * 70, "1" * 20 + "0")):
        drawn = [[int(x) for x in text] for text in (first, second)]
        given = [(sum(of) / len(of), len(of)) for of in drawn]
        found = change(*given[0], *given[1])
        widened = [[*of, 0, 1] for of in drawn]
        gap = fmean(widened[1]) - fmean(widened[0])
        error = math.sqrt(sum(pvariance(of) / len(of) for of in widened))
        assert found.low == pytest.approx(gap - 1.96 * error)
        assert found.high == pytest.approx(gap + 1.96 * error)
        assert (found.before, found.after) == (given[0][0], given[1][0])
