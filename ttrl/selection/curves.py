"""Accuracy of rules against the number of answers, by subsets of those that were sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ttrl.report.selection import Curve, Interval, Point
from ttrl.selection.candidates import Candidates, Floats, Ints
from ttrl.selection.rules import RULES, Rule
from ttrl.selection.stopping import Stopped
from ttrl.settings import SelectionSettings
from ttrl.system.rng import generator

RESAMPLES = 2000
"""Bootstrap samples of the questions."""
ORDERS = 10
"""Orders in which a question's answers may come, when it is asked where sampling would stop."""


@dataclass
class Subsets:
    """Random subsets of the answers to each question: every rule chooses from the same ones.

    Those of n answers are the first n of ``selection.draws`` random orders. So they are nested, and
    differences between rules and between numbers have less noise than each alone.
    """

    candidates: Sequence[Candidates]
    """The questions."""
    settings: SelectionSettings
    """How often to draw, and the options of the rules."""
    seed: int
    """Of the draws and of the bootstrap."""
    _orders: dict[str, Ints] = field(default_factory=dict)
    _right: dict[tuple[str, int], Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Draw the orders, and the questions of the bootstrap."""
        for c in self.candidates:
            rng = generator(self.seed, "subsets", c.question)
            keys_RN = rng.random((self.settings.draws, len(c)))
            self._orders[c.question] = keys_RN.argsort(axis=1)
        count = len(self.candidates)
        rng = generator(self.seed, "bootstrap")
        self._share_BQ = rng.multinomial(count, [1 / count] * count, RESAMPLES) / count
        self.tokens_Q = np.array([c.tokens_N.mean() for c in self.candidates])
        """Mean length of the answers to each question."""
        self.most = min(map(len, self.candidates))
        """Answers that there are to every question."""

    def right(self, rule: Rule, answers: int) -> Floats:
        """Return how often a rule is right on each question, with subsets of so many answers."""
        key = (rule.name, answers)
        if key not in self._right:
            found = [self._right_on(c, rule, answers) for c in self.candidates]
            self._right[key] = np.array(found)
        return self._right[key]

    def curve(self, rule: Rule, numbers: Sequence[int]) -> Curve:
        """Return the accuracy of a rule with these numbers of answers."""
        points = (self.point(self.right(rule, n), n, n * self.tokens_Q) for n in numbers)
        return Curve(rule.name, tuple(points))

    def stops(self, name: str, stop: Callable[[Candidates, Ints], Stopped]) -> Curve:
        """Return what a way to stop early comes to, over `ORDERS` orders of the answers.

        Args:
            name: what to call it.
            stop: function of a question's answers, and of the order in which they come.
        """
        rows = []
        for c in self.candidates:
            ends = [stop(c, order_N[: self.most]) for order_N in self._orders[c.question][:ORDERS]]
            right_R = c.right(np.array([end.chosen for end in ends]))
            begun, tokens = (np.mean([getattr(e, n) for e in ends]) for n in ("answers", "tokens"))
            rows.append((right_R.mean(), begun, tokens))
        right_Q, answers_Q, tokens_Q = np.array(rows).T
        return Curve(name, (self.point(right_Q, float(answers_Q.mean()), tokens_Q),))

    def point(self, right_Q: Floats, answers: float, tokens_Q: Floats) -> Point:
        """Make a point of a curve, and compare it with the majority vote at equal tokens.

        Args:
            right_Q: how often each question was right.
            answers: their mean number.
            tokens_Q: what each question has cost.
        """
        paid = int(tokens_Q.mean() / self.tokens_Q.mean() + 1e-9)
        paid = min(max(1, paid), self.most)
        gain_Q = right_Q - self.right(RULES["majority"], paid)
        return Point(
            answers=answers,
            tokens=float(tokens_Q.mean()),
            accuracy=self.interval(right_Q),
            majority_answers=paid,
            gain=self.interval(gain_Q),
        )

    def interval(self, values_Q: Floats) -> Interval:
        """Return a mean over questions, and the percentiles 2.5 and 97.5 of its bootstrap."""
        mean = float(values_Q.mean())
        if len(values_Q) < 2:
            return Interval(mean, None, None)
        low, high = np.quantile(self._share_BQ @ values_Q, [0.025, 0.975]).tolist()
        return Interval(mean, low, high)

    def _right_on(self, c: Candidates, rule: Rule, answers: int) -> float:
        """Return the share of a question's subsets from which a rule chooses what is right."""
        if rule.choose is None:
            raise ValueError(f"{rule.name} chooses from no subsets")
        order_RN = self._orders[c.question]
        subset_RN = order_RN[: 1 if answers == len(c) else None, :answers]
        scores_N = np.ones(len(c)) if rule.reads is None else c.scores_N[rule.reads]
        chosen_R = rule.choose(c.class_N[subset_RN], scores_N[subset_RN], self.settings)
        return float(c.right(chosen_R).mean())
