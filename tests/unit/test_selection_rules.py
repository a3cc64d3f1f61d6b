"""Rules that choose among answers: by hand, and against slow twins that read like the equations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
import pytest

from ttrl.answers import default_grader, extract_answer
from ttrl.report.rollouts import RecordedAnswer, RecordedGroup
from ttrl.rewards.vote import majority_vote
from ttrl.selection.candidates import NONE, Candidates
from ttrl.selection.rules import RULES, make_rules, refuse_without_model
from ttrl.settings import SelectionSettings
from ttrl.types import UserError

ANSWERS = ("7", "7.0", "8", "9", None)
DEFAULT = SelectionSettings()


def candidates(answers: Sequence[str | None], reference: str = "7") -> Candidates:
    texts = ("?" if a is None else rf"\boxed{{{a}}}" for a in answers)
    recorded = tuple(RecordedAnswer(text, 10, False) for text in texts)
    group = RecordedGroup("q", "p", recorded)
    return Candidates.of(group, reference, extract_answer, default_grader())


def chosen(
    rule: str,
    scores: Sequence[float],
    settings: SelectionSettings = DEFAULT,
    answers: Sequence[str | None] = ANSWERS,
) -> str | None:
    """The answer that a rule chooses, in the first spelling."""
    found = candidates(answers)
    choose = RULES[rule].choose
    assert choose is not None
    (place,) = choose(found.class_N[None], np.array([scores]), settings).tolist()
    if place == NONE:
        return None
    return next(a for a, c in zip(answers, found.class_N, strict=True) if c == place)


def options(**given: object) -> SelectionSettings:
    return SelectionSettings.model_validate(given)


def test_the_majority_counts() -> None:
    assert chosen("majority", (0.2, 0.3, 0.9, 0.1, 0.99)) == "7"


def test_a_weighted_vote_adds_up_scores() -> None:
    """7 has .2 + .3 = .5, 8 has .9; where 7 has .6 + .4 = 1, it wins."""
    assert chosen("weighted", (0.2, 0.3, 0.9, 0.1, 0.99)) == "8"
    assert chosen("weighted", (0.6, 0.4, 0.9, 0.1, 0.99)) == "7"


def test_the_best_of_n_has_the_highest_score_of_those_with_an_answer() -> None:
    assert chosen("best-of-n", (0.6, 0.4, 0.9, 0.1, 0.99)) == "8"
    assert chosen("best-of-n", (0.95, 0.4, 0.9, 0.1, 0.99)) == "7"


@pytest.mark.parametrize(("power", "expected"), [(0.0, "7"), (0.5, "7"), (1.0, "8")])
def test_borda_counts_by_rank(power: float, expected: str) -> None:
    """Ranks 4, 3, 1, 2 of n = 4: 7 has 1 + 2^p votes, 8 has 4^p, 9 has 3^p.

    p = 0.5: 2.41, 2, 1.73; p = 1: 3, 4, 3.
    """
    scores = (1.0, 2.0, 4.0, 3.0, 9.0)
    assert chosen("borda", scores, options(borda_power=power)) == expected


def test_equally_certain_answers_have_the_same_rank() -> None:
    """All have rank 1: votes are equal, and 7 has two."""
    assert chosen("borda", (5.0,) * 5, options(borda_power=2.0)) == "7"


def test_self_certainty_takes_the_most_certain() -> None:
    assert chosen("self-certainty", (1.0, 2.0, 4.0, 3.0, 9.0)) == "8"


@pytest.mark.parametrize(("keep", "expected"), [(1.0, "7"), (0.75, "8"), (0.5, "8"), (0.01, "8")])
def test_deepconf_adds_up_the_confidence_of_those_that_vote(keep: float, expected: str) -> None:
    """All four: 7 has 4.5, 8 has 4, 9 has 3. Of three, 7 has 2.5; of two or one, none."""
    assert chosen("deepconf", (2.0, 2.5, 4.0, 3.0, 9.0), options(keep=keep)) == expected


def test_deepconf_lets_all_vote_that_are_as_confident_as_the_last() -> None:
    """One of four may vote; three share its confidence, two of them for 7."""
    assert chosen("deepconf", (4.0, 4.0, 4.0, 3.0, 9.0), options(keep=0.25)) == "7"


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.choose])
def test_where_nobody_answers_nothing_is_chosen(rule: str) -> None:
    assert chosen(rule, (0.5, 0.7), answers=(None, None)) is None
    assert chosen(rule, (0.5, 0.7), answers=(None, "3")) == "3"


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.choose])
@pytest.mark.parametrize("order", list(permutations(("10", "9", "2"))))
def test_ties_go_to_whom_a_majority_vote_elects(rule: str, order: Sequence[str]) -> None:
    vote = majority_vote(order, default_grader())
    assert vote.tied
    assert chosen(rule, (0.1 + 0.2, 0.3, 0.3), answers=order) in ("10", "9", "2")
    assert chosen(rule, (0.3, 0.3, 0.3), answers=order) == vote.majority


def test_a_sum_that_is_rounded_is_no_larger() -> None:
    """0.1 + 0.2 is 0.30000000000000004: 5 and 2 are tied, and the vote elects 2."""
    order = ("5", "5", "2")
    assert majority_vote(("5", "2"), default_grader()).majority == "2"
    assert chosen("weighted", (0.1, 0.2, 0.3), answers=order) == "2"


def test_a_class_of_zeros_may_win() -> None:
    assert chosen("weighted", (0.0, 0.0, 0.0, 0.0, 0.9)) == "7"


# ---------------------------------------------------------------------------------------------
# Slow twins


def slow(rule: str, classes: Sequence[int], scores: Sequence[float], s: SelectionSettings) -> int:
    """Choose as the equation says, sample by sample; classes are numbered in the order of ties."""
    voters = [(c, x) for c, x in zip(classes, scores, strict=True) if c != NONE]
    if not voters:
        return NONE
    known = [x for _, x in voters]
    votes: Callable[[float], float]
    match rule:
        case "majority":
            votes = lambda x: 1.0  # noqa: E731
        case "weighted":
            votes = lambda x: x  # noqa: E731
        case "borda":
            rank = {x: 1 + sum(y > x for y in known) for x in known}
            votes = lambda x: (len(known) - rank[x] + 1) ** s.borda_power  # noqa: E731
        case "deepconf":
            last = sorted(known, reverse=True)[math.ceil(s.keep * len(known)) - 1]
            voters, votes = [(c, x) for c, x in voters if x >= last], lambda x: x
        case _:
            return min(c for c, x in voters if x == max(known))
    sums: dict[int, float] = {}
    for c, x in voters:
        sums[c] = sums.get(c, 0.0) + votes(x)
    best = max(sums.values())
    return min(c for c, total in sums.items() if total >= best * (1 - 1e-9))


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.choose])
def test_many_subsets_at_once_are_chosen_from_as_one_by_one(rule: str) -> None:
    rng = np.random.default_rng(3)
    choose = RULES[rule].choose
    assert choose is not None
    for n in (1, 2, 3, 7, 16):
        class_RN = rng.integers(-1, 4, (200, n))
        score_RN = rng.integers(0, 6, (200, n)) / 4  # so that many are equal
        settings = options(keep=0.4, borda_power=0.7)
        found = choose(class_RN, score_RN, settings).tolist()
        rows = zip(class_RN.tolist(), score_RN.tolist(), strict=True)
        assert found == [slow(rule, c, s, settings) for c, s in rows]


# ---------------------------------------------------------------------------------------------
# Candidates and names


def test_candidates_by_hand() -> None:
    found = candidates(ANSWERS, reference="7.00")
    assert found.class_N.tolist() == [0, 0, 1, 2, NONE]
    assert found.right_C.tolist() == [1.0, 0.0, 0.0]
    assert found.tokens_N.tolist() == [10.0] * 5
    assert found.right(np.array([0, 2, NONE])).tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="x: expected 5 finite numbers"):
        found.scored("x", np.array([1.0, 2.0, 3.0, 4.0, np.nan]))


def test_names() -> None:
    assert [rule.name for rule in make_rules("borda, majority")] == ["borda", "majority"]
    with pytest.raises(
        UserError, match=r"'bordas' is unknown \(did you mean 'borda'\?\): expected"
    ):
        make_rules("majority,bordas")
    with pytest.raises(UserError, match="names 'borda' twice"):
        make_rules("borda,borda")


def test_rewards_need_a_model_and_a_model_a_rule_that_reads_it() -> None:
    with pytest.raises(
        UserError, match=r"weighted,best-of-n needs the scores.*--reward-model NAME"
    ):
        refuse_without_model(make_rules("weighted,majority,best-of-n"), None)
    with pytest.raises(UserError, match=r"--reward-model x would be ignored.*weighted,best-of-n"):
        refuse_without_model(make_rules("majority"), "x")
    refuse_without_model(make_rules("majority,weighted"), "x")
    refuse_without_model(make_rules("majority"), None)
