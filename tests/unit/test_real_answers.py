"""Answers as real people and models wrote them, from public reports of other graders' faults."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from ttrl.answers import Grader
from ttrl.rewards import majority_vote

CASES = [
    line.split("\t")
    for line in Path(__file__).with_name("real_answers.tsv").read_text("utf-8").splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
def test_as_they_should_be(grader: Grader, case: list[str]) -> None:
    verdict, *answers = case
    found = grader.classes(answers)
    expected = {"same": 1, "different": len(answers)}[verdict]
    assert len(set(found.name_of.values())) == expected, dict(found.name_of)
    assert not found.undecided
    for a, b in combinations(answers, 2):  # by themselves: two other units part more in a group
        assert grader.equivalent(a, b) == (verdict == "same"), (a, b)


@pytest.mark.parametrize(
    ("votes", "majority", "counts"),
    [
        (
            {r"10,000\pi": 3, r"10,000\sqrt2": 2, "0, 10": 2, r"10000\pi": 4},
            r"10000\pi",
            (7, 2, 2),
        ),
        ({r"\text{IV}": 3, r"\text{VI}": 3, r"\text{III}": 5}, r"\text{III}", (5, 3, 3)),
        ({r"-1<x\leq2": 3, "(-1,2]": 3, "(-1,2)": 4}, "(-1,2]", (6, 4)),
        ({r"12\text{ ways}": 3, "12": 3, "9": 5}, "12", (6, 5)),
        (
            {"30": 4, r"30\text{ minutes}": 3, r"30\text{ hours}": 2, "30 min": 2},
            r"30\text{ minutes}",
            (5, 4, 2),
        ),
    ],
)
def test_votes(
    grader: Grader, votes: dict[str, int], majority: str, counts: tuple[int, ...]
) -> None:
    answers = [answer for answer, n in votes.items() for _ in range(n)]
    vote = majority_vote(answers, grader)
    assert (vote.majority, vote.counts) == (majority, counts)
    assert majority_vote(answers[::-1], grader).counts == counts


def test_a_reference_without_a_unit_is_every_unit(grader: Grader) -> None:
    answers = [r"30\text{ minutes}", r"30\text{ hours}", "30", "31", None]
    assert grader.agree(answers, "30") == (True, True, True, False, False)
    assert grader.agree(answers, "30 min") == (True, False, True, False, False)
