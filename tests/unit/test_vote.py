"""Who wins, and that the order of the voters does not matter."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttrl.answers import equivalent
from ttrl.rewards import majority_vote
from ttrl.rewards.vote import is_settled
from ttrl.types import Vote


def test_example_of_the_type() -> None:
    assert majority_vote(("7", "7.0", None, "8")) == Vote(
        answers_G=("7", "7.0", None, "8"),
        clusters_G=(0, 0, None, 1),
        counts=(2, 1),
        names=("7", "8"),
        majority="7",
        majority_ratio=0.5,
        margin=0.25,
        abstained=1,
        tied=False,
    )


def test_equivalent_spellings_vote_together() -> None:
    vote = majority_vote(["3", "3", r"\frac{1}{2}", "0.5", "1/2"])
    assert vote.clusters_G == (1, 1, 0, 0, 0)
    assert vote.counts == (3, 2)
    assert vote.majority_ratio == 0.6
    assert vote.margin == pytest.approx(0.2)


def test_label_is_the_most_common_spelling_of_a_voter() -> None:
    assert majority_vote(["0.5", r"\frac12", r"\frac12", "7"]).majority == r"\frac12"
    assert majority_vote(["025", "25.0", "25.0", "7"]).majority == "25.0"


def test_equally_common_spellings_shorter_then_smaller() -> None:
    assert majority_vote(["25.0", "025", "+25"]).majority == "+25"
    assert majority_vote(["25.0", "025"]).majority == "025"


def test_tied_classes_shorter_then_smaller() -> None:
    vote = majority_vote(["10", "9", "10", "9", "8"])
    assert vote.majority == "9"
    assert vote.clusters_G == (1, 0, 1, 0, 2)
    assert vote.counts == (2, 2, 1)
    assert vote.margin == 0
    assert vote.tied
    assert majority_vote(["8", "7"]).majority == "7"
    assert not majority_vote(["7", "8", "7"]).tied


def test_abstentions_never_win_but_count_in_the_shares() -> None:
    vote = majority_vote([None, None, None, "5"])
    assert (vote.majority, vote.majority_ratio, vote.margin, vote.abstained) == ("5", 0.25, 0.25, 3)
    assert vote.clusters_G == (None, None, None, 0)


def test_answers_without_content_abstain() -> None:
    vote = majority_vote(["", " ", r"\,", "5"])
    assert vote.answers_G == (None, None, None, "5")
    assert (vote.majority, vote.counts, vote.abstained) == ("5", (1,), 3)


@pytest.mark.parametrize("answers", [[None, None], ["", ""], []])
def test_nobody_votes(answers: list[str | None]) -> None:
    nobody = (None,) * len(answers)
    expected = Vote(nobody, nobody, (), (), None, 0.0, 0.0, len(answers), False)
    assert majority_vote(answers) == expected


voters = st.lists(
    st.sampled_from(["7", "7.0", "07", "8", "9", "10", r"\frac{16}{2}", "x", "(1,2)", None, ""]),
    max_size=12,
)


@given(voters, st.randoms(use_true_random=False))
def test_order_of_the_voters_does_not_matter(answers: list[str | None], rng: random.Random) -> None:
    order = rng.sample(range(len(answers)), len(answers))
    vote, shuffled = majority_vote(answers), majority_vote([answers[i] for i in order])
    assert shuffled.clusters_G == tuple(vote.clusters_G[i] for i in order)
    for field in ("counts", "majority", "majority_ratio", "margin", "abstained", "tied"):
        assert getattr(shuffled, field) == getattr(vote, field)


@given(voters)
def test_classes_are_those_of_the_grader(answers: list[str | None]) -> None:
    vote = majority_vote(answers)
    voted = [(a, c) for a, c in zip(answers, vote.clusters_G, strict=True) if c is not None]
    for a, cluster_a in voted:
        for b, cluster_b in voted:
            assert (cluster_a == cluster_b) == equivalent(a or "", b or "")
    assert sum(vote.counts) + vote.abstained == len(answers)
    assert list(vote.counts) == sorted(vote.counts, reverse=True)
    if voted:
        assert vote.majority in [a for a, cluster in voted if cluster == 0]


def test_a_vote_is_settled_when_not_even_a_tie_is_left() -> None:
    assert is_settled((5, 2), 2) and not is_settled((5, 2), 3)
    assert is_settled((2, 5), 2)
    assert is_settled((3,), 2) and not is_settled((3,), 3)
    assert not is_settled((), 0)
