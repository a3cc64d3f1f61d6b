"""Verdicts on solutions: how they are read, what they earn, and what is measured of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conversations import question, said, settings
from groups import boxed
from recipes import refusal

from ttrl.answers import Grader, extract_answer
from ttrl.evaluation.metrics import labelled_metrics
from ttrl.evaluation.outcomes import turn_metrics
from ttrl.evaluation.scoring import score_groups
from ttrl.report.page.history import answers_of
from ttrl.report.rollouts import RecordedGroup, judged_line, read_groups
from ttrl.rewards.scorer import GroupScorer
from ttrl.types import AnswerKey, CompletionGroup, Turn, UserError, Verdict

GRADER = Grader()
CHAIN = ("rollout.workflow=chain", "rollout.agents=3", "rollout.votes=66")
ROLES = ("generator", "verifier", "refiner")

# Four chains. 7 has four votes, 8 three, and one refiner gives no answer.
SAID = (
    ("7", r"\boxed{1}", "7"),
    ("8", r"\boxed{0}", "7"),
    ("8", r"\boxed{1}", "8"),
    ("7", r"\boxed{1.0}", None),
)
PAID = (1, 1, 1, 0, 1, 1, 0, 0, 0, 1, 0, 0)


def chains(*said_in: tuple[str | None, ...], roles: tuple[str, ...] = ROLES) -> CompletionGroup:
    """A group of chains: of each the texts of those whose role is a verifier's, else answers."""
    completions = tuple(
        said(str(what) if role == "verifier" else boxed(what), Turn(t, 0, j, role))
        for j, one in enumerate(said_in)
        for t, (role, what) in enumerate(zip(roles, one, strict=True))
    )
    return CompletionGroup(question(), completions, 0)


def scorer(estimator: str = "majority", options: object = None, **agents: object) -> GroupScorer:
    reward = {"estimator": estimator, "options": options or {}}
    run = settings("chain", agents=3, votes=12, reward=reward)
    own = run.agents.model_copy(update={"chain": "verdict", **agents})
    return GroupScorer(run.model_copy(update={"agents": own}), GRADER)


def test_a_verdict_earns_by_being_right_and_has_no_vote() -> None:
    found = scorer().estimate(chains(*SAID), None, 1)
    assert (found.label, found.vote.counts, found.vote.votes) == ("7", (4, 3), 8)
    assert (found.vote.majority_ratio, found.vote.abstained) == (0.5, 1)
    assert found.vote.answers_G[1::3] == (None,) * 4
    assert found.verdicts == {
        1: Verdict(0, True),
        4: Verdict(3, False),
        7: Verdict(6, True),
        10: Verdict(9, None),
    }
    assert found.rewards_G == PAID


@pytest.mark.parametrize(
    ("agents", "expected"),
    [
        # Q is what the solution earned, then the mean of that and of the verdict's.
        (
            {"shaping": "margin"},
            (1, 1, 1, 0, 1.5, 1.25, 0, 0, 0, 1, -0.5, -0.25),
        ),
        (
            {"shaping": "quality"},
            (1, 1.5, 1.5, 0, 1, 1.25, 0, -0.5, -0.5, 1, 0, -0.25),
        ),
        # Half of what the refiner earns: 1, 1, 0, 0.
        ({"outcome_coef": 0.5}, (1.5, 1.5, 1.5, 0.5, 1.5, 1.5, 0, 0, 0, 1, 0, 0)),
        (
            {"shaping": "margin", "outcome_coef": 0.5},
            (1.5, 1.5, 1.5, 0.5, 2, 1.75, 0, 0, 0, 1, -0.5, -0.25),
        ),
    ],
)
def test_verdicts_are_shaped_like_answers(
    agents: dict[str, object], expected: tuple[float, ...]
) -> None:
    found = scorer(**agents).estimate(chains(*SAID), None, 1)
    assert found.rewards_G == PAID
    assert found.shaped_G == pytest.approx(expected)


@pytest.mark.parametrize("shaping", ["none", "margin", "quality"])
@pytest.mark.parametrize("solution", ["7", "8"])
def test_no_shaping_makes_a_wrong_verdict_the_better_one(shaping: str, solution: str) -> None:
    """Of the same solution, a right verdict is worth 1 + a more, or 1, whatever Q is."""
    others = [("7", "", "7")] * 3
    worth = []
    for verdict in ("1", "0"):
        group = chains((solution, rf"\boxed{{{verdict}}}", "7"), *others)
        found = scorer(shaping=shaping).estimate(group, None, 1)
        worth.append(found.worth_G[1])
    right, wrong = worth if solution == "7" else reversed(worth)
    assert right - wrong == pytest.approx(1.0 if shaping == "none" else 1.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (r"So it is \boxed{1}", True),
        (r"\boxed{0}.", False),
        (r"It boxes \boxed{8}, which is wrong: \boxed{ 0 }", False),
        (r"1", None),
        (r"\boxed{}", None),
        (r"\boxed{01}", None),
        (r"\boxed{1.0}", None),
        (r"\boxed{+1}", None),
        (r"\boxed{-0}", None),
        (r"\boxed{2}", None),
        (r"\boxed{true}", None),
        (r"\boxed{1, 0}", None),
        (r"\boxed{2-1}", None),
        ("\\boxed{\N{FULLWIDTH DIGIT ONE}}", None),
        ("\\boxed{\N{SUPERSCRIPT ONE}}", None),
        (r"\boxed{1" * 1000, None),
        ("\ud800\0", None),
        ("", None),
    ],
)
def test_a_verdict_is_one_to_the_letter_or_none(text: str, says: bool | None) -> None:
    for solution, agrees in (("7", True), ("8", False)):
        found = scorer().estimate(chains((solution, text, "7"), ("7", text, "7")), None, 1)
        assert found.verdicts[1] == Verdict(0, says)
        assert found.rewards_G[1] == float(says is not None and says == agrees)


def test_ones_do_not_elect_the_label() -> None:
    group = chains(("7", r"\boxed{1}", "8"), ("7", r"\boxed{1}", "9"))
    found = scorer().estimate(group, None, 1)
    assert found.label == "7" and found.rewards_G == (1, 1, 0, 1, 1, 0)
    # In a chain of roles the box of a verifier is an answer, and has a vote.
    roles = scorer(chain="roles")
    group = chains(("7", r"\boxed{1}", "8"), ("9", r"\boxed{1}", "5"))
    found = roles.estimate(group, None, 1)
    assert found.label == "1" and found.verdicts == {}


def test_a_solution_without_an_answer_is_not_right() -> None:
    found = scorer().estimate(chains((None, r"\boxed{0}", "7"), (None, r"\boxed{1}", "7")), None, 1)
    assert found.label == "7" and found.rewards_G == (0, 1, 1, 0, 0, 1)


@pytest.mark.parametrize(
    ("voters", "label", "counts"),
    [("all", "7", (4, 3)), ("first", "7", (2, 2)), ("last", "7", (2, 1))],
)
def test_verdicts_beside_the_voters_of_a_turn(
    voters: str, label: str, counts: tuple[int, ...]
) -> None:
    found = scorer(voters=voters).estimate(chains(*SAID), None, 1)
    assert (found.label, found.vote.counts) == (label, counts)
    assert found.rewards_G == PAID


def test_each_of_several_verifiers_judges_the_solution() -> None:
    roles = ("generator", "verifier", "verifier", "refiner")
    group = chains(("8", r"\boxed{1}", r"\boxed{0}", "7"), ("7", "", "", "7"), roles=roles)
    found = scorer().estimate(group, None, 1)
    assert found.verdicts[1] == Verdict(0, True) and found.verdicts[2] == Verdict(0, False)
    assert found.rewards_G == (0, 0, 1, 1, 1, 0, 0, 1)


def test_a_label_from_elsewhere_is_what_a_verdict_is_compared_with(tmp_path: Path) -> None:
    group = chains(*SAID)
    by_eight = (0, 0, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0)
    assert scorer().estimate(group, {"q1": "8"}, 1).rewards_G == by_eight
    assert scorer().estimate(group, {"q1": None}, 1).rewards_G == (0,) * 12
    # An estimator may elect another than the voters' majority: 8 weighs 3 · 5.
    check = tmp_path / "check.py"
    check.write_text("def passes(prompt, text):\n    return '{8}' in text\n")
    judge = scorer("verified", {"verifier": f"{check}:passes"})
    found = judge.estimate(group, None, 1)
    assert found.label == "8" and found.vote.majority == "7"
    assert found.rewards_G == by_eight


def test_what_is_measured_of_verdicts() -> None:
    group = chains(*SAID)
    found = scorer().estimate(group, None, 1)
    figures = turn_metrics(group, found)
    assert figures["agents/reward/turn=1"] == 0.5
    assert figures["agents/abstention_share/turn=1"] == 0.25  # neither 1 nor 0
    assert figures["agents/approval_share"] == 0.5
    key = AnswerKey({"q1": "8"})
    metrics = labelled_metrics([group], [found], key, GRADER, [[0, 1, 2]])
    # By the reference two of four solutions are right, one refined one, and one verdict.
    assert metrics["label/verdict_accuracy"] == 0.25
    assert metrics["label/ground_truth_reward"] == pytest.approx(4 / 12)
    assert metrics["label/reward_accuracy"] == pytest.approx(2 / 12)
    assert metrics["label/pass@8"] == 1 and metrics["trained/pass@2"] == 0
    assert metrics["trained/ground_truth_reward"] == 0
    ones = labelled_metrics([group], [found], AnswerKey({"q1": "1"}), GRADER, [[1]])
    assert ones["label/pass@8"] == 0  # a verdict of 1 is not the answer 1
    assert "trained/pass@1" not in ones
    # Without verdicts nothing is measured of them.
    plain = replace(found, verdicts={})
    assert "label/verdict_accuracy" not in labelled_metrics([group], [plain], key, GRADER, [[0]])
    assert "agents/approval_share" not in turn_metrics(group, plain)


def test_an_evaluation_says_how_many_verdicts_are_right() -> None:
    run, key = scorer().settings, AnswerKey({"q1": "8"})
    recorded = RecordedGroup.of(chains(*SAID))
    (found,) = score_groups([recorded], key, (1,), extract_answer, GRADER, run)
    # The third alone: it says of 8 that it is right.
    assert (found.scores["verdict"], found.scores["outcome"]) == (0.25, 0.25)
    (ones,) = score_groups([recorded], AnswerKey({"q1": "1"}), (1,), extract_answer, GRADER, run)
    assert (ones.scores["verdict"], ones.scores["outcome"]) == (0.25, 0)  # 8 is not 1: the second
    (plain,) = score_groups([recorded], key, (1,), extract_answer, GRADER)
    assert "verdict" not in plain.scores


def test_verdicts_are_written_down_and_read_again(tmp_path: Path) -> None:
    group = chains(*SAID)
    line = judged_line(group, scorer().estimate(group, None, 1))
    file = tmp_path / "step_00001.jsonl"
    file.write_text(f"{json.dumps(line)}\n")
    (recorded,) = read_groups(file)
    assert [a.verdict for a in recorded.answers[1::3]] == [True, False, True, None]
    assert [a.answer for a in recorded.answers[1::3]] == [None] * 4
    assert [a.is_verdict for a in recorded.answers] == [False, True, False] * 4
    assert line["completions"][4]["verdict_of"] == 3
    shown = [lines[0] for lines in answers_of([recorded])["answers"]["q1"]]
    assert shown[4].startswith("[trajectory 2, turn 2: verifier 1, verdict: wrong]\n")
    assert shown[10].startswith("[trajectory 4, turn 2: verifier 1, without a vote]\n")
    assert shown[0].startswith("[trajectory 1, turn 1: generator 1]\n")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rollout.workflow=debate", "agents.chain=verdict"], 'needs rollout.workflow = "chain"'),
        (["rollout.workflow=a.py:B", "agents.chain=role_free"], 'needs rollout.workflow = "chain"'),
        ([*CHAIN, "agents.chain=verdict", "reward.estimator=random"], "does not look at"),
        ([*CHAIN, "agents.chain=verdict", "answers.extract=choice"], "reads letters"),
        ([*CHAIN, 'agents.judge="{agent}"'], "shows {agent}: expected {answers}, {gen"),
        ([*CHAIN, 'agents.act="{verifier}"'], "shows {verifier}: expected {agent}, {an"),
    ],
)
def test_chains_that_cannot_be(overrides: list[str], words: str) -> None:
    assert words in refusal(*overrides)


def test_a_verdict_on_no_solution_is_refused() -> None:
    """As in answers that were recorded, and of which some were then left out."""
    whole = chains(*SAID)
    torn = replace(whole, completions=whole.completions[1:])
    with pytest.raises(UserError, match="verdict in turn 1 of trajectory 0 is on no solution"):
        scorer().estimate(torn, None, 1)
