"""Which turns of several agents elect the label, and what those without a vote still get."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from conversations import in_turns, settings
from groups import boxed, group
from hypothesis import given
from hypothesis import strategies as st
from recipes import refusal

from ttrl.answers import Grader
from ttrl.evaluation.metrics import vote_metrics
from ttrl.report.page.history import visit
from ttrl.report.rollouts import judged_line, read_groups
from ttrl.rewards import majority_vote
from ttrl.rewards.estimators.readings import class_means, spelling
from ttrl.rewards.scorer import GroupScorer
from ttrl.stream.answers import answer_record
from ttrl.types import PastVote, UserError

GRADER = Grader()
DEBATE = ("rollout.workflow=debate", "rollout.agents=2", "rollout.rounds=2")

# Two debates of two agents and two rounds, round by round: 7 8 | 7 7 and 8 9 | 9 7.
SAID = ("7", "8", "7", "7", "8", "9", "9", "7")
PLACES = [(j, t, a) for j in (0, 1) for t in (0, 1) for a in (0, 1)]
DEBATED = in_turns(*((*place, boxed(x)) for place, x in zip(PLACES, SAID, strict=True)))
LAST = (False, False, True, True, False, False, True, True)


def scorer(voters: str, estimator: str = "majority", **options: object) -> GroupScorer:
    reward = {"estimator": estimator, "options": options}
    run = settings(agents=2, rounds=2, votes=8, reward=reward)
    own = run.agents.model_copy(update={"voters": voters})
    return GroupScorer(run.model_copy(update={"agents": own}), GRADER)


@pytest.mark.parametrize(
    ("voters", "label", "counts", "rewards"),
    [
        ("all", "7", (4, 2, 2), (1, 0, 1, 1, 0, 0, 0, 1)),
        ("first", "8", (2, 1, 1), (0, 1, 0, 0, 1, 0, 0, 0)),
        ("last", "7", (3, 1), (1, 0, 1, 1, 0, 0, 0, 1)),
    ],
)
def test_a_turns_answers_elect_and_all_are_judged(
    voters: str, label: str, counts: tuple[int, ...], rewards: tuple[int, ...]
) -> None:
    found = scorer(voters).estimate(DEBATED, None, 1)
    assert (found.label, found.vote.counts, found.rewards_G) == (label, counts, rewards)


def test_what_is_counted_is_of_the_voters_alone() -> None:
    vote = scorer("last").vote(DEBATED)
    assert vote.voters_G == LAST and vote.votes == 4
    assert vote.answers_G == SAID
    # 8 has no vote: it is in no class, as if nobody had said it.
    assert vote.clusters_G == (0, None, 0, 0, None, 1, 1, 0)
    assert vote.cast_G == (None, None, 0, 0, None, None, 1, 0)
    assert (vote.majority_ratio, vote.margin, vote.abstained, vote.tied) == (0.75, 0.5, 0, False)
    assert class_means(vote, list(range(8))) == [(2 + 3 + 7) / 3, 6.0]
    assert [spelling(vote, c) for c in (0, 1)] == ["7", "9"]
    assert vote.backers((True,) * 8) == 4 and vote.backers((True,) * 2 + (False,) * 6) == 0
    everybody = scorer("all").vote(DEBATED)
    assert everybody.voters_G is None and everybody.votes == 8
    assert everybody.cast_G == everybody.clusters_G


def test_the_figures_of_a_step_are_of_the_voters() -> None:
    mute = in_turns(
        *((0, 0, a, boxed(x)) for a, x in enumerate(("7", None))),
        *((0, 1, a, boxed(x)) for a, x in enumerate(("8", "8"))),
    )
    found = scorer("first").estimate(mute, None, 1)
    history = {"q1": (PastVote(1, "7", 0.5),)}
    metrics = vote_metrics([mute], [found], history, [range(4)])
    assert metrics["vote/majority_ratio"] == metrics["vote/margin"] == 0.5
    assert metrics["vote/abstention_share"] == 0.5  # of two, and not of four
    assert metrics["vote/distinct_answers"] == 1 and metrics["vote/entropy"] == 0
    assert metrics["estimator/confidence"] == 0.5
    assert metrics["reward/majority_reward"] == 0.25  # of all four
    assert metrics["agents/reward/turn=1"] == 0
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    debate = scorer("last").estimate(DEBATED, None, 1)
    metrics = vote_metrics([DEBATED], [debate], history, [range(8)])
    assert metrics["vote/entropy"] == pytest.approx(entropy)


def test_where_no_voter_answers_nobody_is_paid() -> None:
    mute = in_turns((0, 0, 0, boxed(None)), (0, 1, 0, boxed("7")), (0, 1, 1, boxed("7")))
    found = scorer("first").estimate(mute, None, 1)
    assert (found.label, found.rewards_G, found.vote.majority_ratio) == (None, (0, 0, 0), 0)
    assert found.vote.clusters_G == (None,) * 3 and found.vote.abstained == 1


@pytest.mark.parametrize(
    ("name", "rewards", "confidence"),
    [
        # A share of the four votes: of 7 three, of 9 one, of 8 none.
        ("soft", (0.75, 0, 0.75, 0.75, 0, 0.25, 0.25, 0.75), 0.75),
        # 7 has three of four votes, and leads by two; 9 has one, which is not few.
        ("scrl", (1, 0, 1, 1, 0, 0, 0, 1), 0.75),
    ],
)
def test_estimators_count_the_voters(
    name: str, rewards: tuple[float, ...], confidence: float
) -> None:
    found = scorer("last", name).estimate(DEBATED, None, 1)
    assert found.rewards_G == rewards and found.confidence == confidence


def test_only_voters_are_verified(tmp_path: Path) -> None:
    check = tmp_path / "check.py"
    check.write_text("def passes(prompt, text):\n    return '{7}' not in text\n")
    judge = scorer("last", "verified", verifier=f"{check}:passes")
    found = judge.estimate(DEBATED, None, 1)
    # 9 passes, with the weight 5; the two 8 of the first round pass, and are not asked.
    assert found.label == "9" and found.confidence == 5 / 8
    assert found.rewards_G == (0, 0, 0, 0, 0, 1, 1, 0)
    assert found.metrics["verified_share"] == 0.25


@given(
    st.lists(st.tuples(st.sampled_from(["1", "1.0", "2", "3", None]), st.booleans()), min_size=1)
)
def test_a_vote_of_some_is_the_vote_of_a_group_of_those(
    cast: list[tuple[str | None, bool]],
) -> None:
    """The slow way: leave out the others, vote, and then look for what they have said."""
    answers, voters_G = [a for a, _ in cast], [v for _, v in cast]
    if not any(voters_G):
        return
    found = majority_vote(answers, GRADER, voters_G)
    alone = majority_vote([a for a, votes in cast if votes], GRADER)
    for name in ("counts", "names", "majority", "majority_ratio", "margin", "abstained", "tied"):
        assert getattr(found, name) == getattr(alone, name)
    assert [c for c, votes in zip(found.clusters_G, voters_G, strict=True) if votes] == list(
        alone.clusters_G
    )
    for answer, cluster in zip(answers, found.clusters_G, strict=True):
        same = [c for c, name in enumerate(alone.names) if answer and float(answer) == float(name)]
        assert cluster == (same[0] if same else None)


def test_votes_are_written_down_and_read_again(tmp_path: Path) -> None:
    line = judged_line(DEBATED, scorer("last").estimate(DEBATED, None, 1))
    assert [said["votes"] for said in line["completions"]] == list(LAST)
    file = tmp_path / "step_00001.jsonl"
    file.write_text(f"{json.dumps(line)}\n")
    (recorded,) = read_groups(file)
    assert tuple(answer.votes for answer in recorded.answers) == LAST
    seen = visit(1, recorded, GRADER)
    assert (seen.votes, seen.clusters) == (4, (("7", 3, True), ("9", 1, False)))
    everybody = judged_line(DEBATED, scorer("all").estimate(DEBATED, None, 1))
    assert not any("votes" in said for said in everybody["completions"])


def test_a_streams_answer_is_a_voters() -> None:
    early = in_turns(
        (0, 0, 0, f"at first {boxed('7')}"), (0, 1, 0, boxed("7")), (0, 1, 1, boxed("8"))
    )
    record = answer_record(early, scorer("last").vote(early))
    assert (record["answer"], record["votes"], record["share"]) == ("7", 2, 0.5)
    assert record["response"] == boxed("7")


def test_a_workflow_without_turns_cannot_say_who_votes() -> None:
    with pytest.raises(UserError, match=r"agents.voters = \'last\': rollout.workflow returned an"):
        scorer("last").vote(group("7", "8"))
    assert scorer("all").vote(group("7", "8")).votes == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["agents.voters=first"], "[agents] needs rollout.workflow"),
        ([*DEBATE, "agents.voters=last", "reward.labels=teacher"], "would be ignored: with reward"),
        ([*DEBATE, "agents.voters=some"], "agents.voters"),
    ],
)
def test_voters_that_would_be_ignored(overrides: list[str], words: str) -> None:
    assert words in refusal(*overrides)
