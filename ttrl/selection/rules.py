"""Rules that choose one of many answers: each from its equation, for many subsets at once.

Notation: a_i is the answer of sample i, s_i what speaks for it. Samples without an answer are
dropped first. Of several answers that a rule likes equally, the one that a tied majority vote
elects is chosen (`ttrl.rewards.vote.majority_vote`), so no order of the samples can matter.

Shapes: ``_R`` one entry per subset, ``_N`` per sample of it, ``_C`` per class of equal answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ttrl.selection.candidates import NONE, Floats, Ints
from ttrl.settings import SelectionSettings
from ttrl.settings.errors import did_you_mean
from ttrl.types import UserError

Score = Literal["reward", "certainty", "confidence"]
"""What a rule may read of a sample: what a reward model says of it; the mean certainty of its
tokens, see `ttrl.report.confidence`; its DeepConf confidence, see `ttrl.selection.confidence`."""
EPSILON = 1e-9
"""Votes that differ by less, as a share of the largest, are equally many: sums are rounded."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A way to choose."""

    name: str
    """As ``--select`` knows it."""
    reads: Score | Literal["policy"] | None
    """What it needs beside the answers."""
    choose: Callable[[Ints, Floats, SelectionSettings], Ints] | None
    """Function of the classes [R, N] and scores [R, N] of R subsets of N samples to the classes
    chosen [R]; `NONE` where no sample has an answer. None: the policy is asked."""


def majority(class_RN: Ints, score_RN: Floats, settings: SelectionSettings) -> Ints:
    """Choose argmax_a #{i: a_i = a} (self-consistency, arXiv 2203.11171)."""
    return most_votes(class_RN, np.ones(class_RN.shape))


def weighted(class_RN: Ints, score_RN: Floats, settings: SelectionSettings) -> Ints:
    """Choose argmax_a Σ_{i: a_i = a} s_i (weighted best-of-N, arXiv 2206.02336, 2408.03314)."""
    return most_votes(class_RN, score_RN)


def best_of_n(class_RN: Ints, score_RN: Floats, settings: SelectionSettings) -> Ints:
    """Choose the answer of argmax_i s_i (arXiv 2110.14168), which is argmax_a max_{i: a_i = a} s_i.

    So it is what others call the max vote, too.
    """
    score_RN = np.where(class_RN == NONE, -np.inf, score_RN)
    best_RN = (score_RN == score_RN.max(axis=1, keepdims=True)) & (class_RN != NONE)
    past = np.iinfo(np.int64).max
    first_R = np.where(best_RN, class_RN, past).min(axis=1)
    return np.where(first_R == past, NONE, first_R)


def preferred(class_N: Ints, score_N: Floats) -> Ints:
    """Order samples so that best-of-n chooses the first one's answer, of any subset of them."""
    without_N = class_N == NONE
    order: Ints = np.lexsort((class_N, -score_N, without_N))
    return order


def borda(class_RN: Ints, score_RN: Floats, settings: SelectionSettings) -> Ints:
    """Choose argmax_a Σ_{i: a_i = a} (n - r_i + 1)^p, r_i the rank of s_i (arXiv 2502.18581).

    Rank 1 is the largest score of the n samples with an answer; equal ones have the same rank.
    """
    votes_RN = at_most(class_RN, score_RN).astype(np.float64) ** settings.borda_power
    return most_votes(class_RN, votes_RN)


def deepconf(class_RN: Ints, score_RN: Floats, settings: SelectionSettings) -> Ints:
    """Choose argmax_a Σ_{i: a_i = a} s_i over the share ``keep`` with the largest s_i.

    arXiv 2508.15260. Of n samples with an answer, ⌈keep·n⌉ vote, and those that are as confident as
    the last of them.
    """
    voters_R1 = (class_RN != NONE).sum(axis=1, keepdims=True)
    above_RN = voters_R1 - at_most(class_RN, score_RN)
    kept_R1 = np.ceil(settings.keep * voters_R1 - EPSILON)
    return most_votes(np.where(above_RN < kept_R1, class_RN, NONE), score_RN)


RULES = {
    rule.name: rule
    for rule in (
        Rule("majority", None, majority),
        Rule("weighted", "reward", weighted),
        Rule("best-of-n", "reward", best_of_n),
        Rule("borda", "certainty", borda),
        Rule("self-certainty", "certainty", best_of_n),
        Rule("deepconf", "confidence", deepconf),
        Rule("reflection", "policy", None),
    )
}
"""By name."""


def make_rules(names: str) -> tuple[Rule, ...]:
    """Return the rules that a list of names, with commas between them, asks for.

    Raises:
        UserError: for a name that is no rule's, or is there twice.
    """
    found: list[Rule] = []
    for name in (word.strip() for word in names.split(",")):
        if name not in RULES:
            raise UserError(
                f"--select {name!r} is unknown{did_you_mean(name, RULES)}: expected one or more of "
                f"{','.join(RULES)}"
            )
        if RULES[name] in found:
            raise UserError(f"--select names {name!r} twice: expected each rule once")
        found.append(RULES[name])
    return tuple(found)


def refuse_without_model(rules: Sequence[Rule], reward_model: str | None) -> None:
    """Raise a UserError if rules read rewards and there is no reward model, or the reverse."""
    names = ",".join(rule.name for rule in rules if rule.reads == "reward")
    if names and reward_model is None:
        raise UserError(
            f"--select {names} needs the scores of a reward model: add --reward-model NAME, or "
            "leave it out"
        )
    if reward_model is not None and not names:
        needs = ",".join(rule.name for rule in RULES.values() if rule.reads == "reward")
        raise UserError(
            f"--reward-model {reward_model} would be ignored: none of the rules reads its scores; "
            f"add one to --select ({needs})"
        )


def most_votes(class_RN: Ints, votes_RN: Floats) -> Ints:
    """Return the class of each row whose samples have the largest sum of votes.

    A class may be chosen if a sample of the row is in it, even one with 0 votes.
    """
    sums_RC = class_sums(class_RN, votes_RN)
    there_RC = class_sums(class_RN, np.ones(class_RN.shape)) > 0
    if sums_RC.shape[1] == 0:
        return np.full(len(class_RN), NONE)
    sums_RC = np.where(there_RC, sums_RC, -np.inf)
    most_R1 = sums_RC.max(axis=1, keepdims=True)
    slack_R1 = EPSILON * np.where(np.isfinite(most_R1), np.abs(most_R1), 0.0)
    first_R = (sums_RC >= most_R1 - slack_R1).argmax(axis=1)
    return np.where(there_RC.any(axis=1), first_R, NONE)


def class_sums(class_RN: Ints, votes_RN: Floats) -> Floats:
    """Add up the votes of each class in each row: [R, C]."""
    rows, classes = len(class_RN), int(class_RN.max(initial=NONE)) + 1
    place_RN = class_RN + classes * np.arange(rows)[:, None]
    there_RN = class_RN != NONE
    weights = votes_RN[there_RN].astype(np.float64)
    sums = np.bincount(place_RN[there_RN], weights, rows * classes).astype(np.float64)
    return sums.reshape(rows, classes)


def at_most(class_RN: Ints, score_RN: Floats) -> Ints:
    """Count in each row the samples with an answer whose score is not above that of each sample."""
    values, rank_RN = np.unique(score_RN, return_inverse=True)
    rank_RN = rank_RN.reshape(score_RN.shape)
    place_RN = rank_RN + len(values) * np.arange(len(class_RN))[:, None]
    counts = np.bincount(place_RN[class_RN != NONE], minlength=len(class_RN) * len(values))
    below_RV = counts.reshape(len(class_RN), len(values)).cumsum(axis=1)
    found: Ints = np.take_along_axis(below_RV, rank_RN, axis=1)
    return found
