"""A point of a scaling curve: an accuracy, and the tokens that it took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ttrl.report.results import Mean, mean_of


@dataclass(frozen=True, slots=True)
class Factors:
    """How many sampled tokens other work counts as.

    Example: ``Factors(read=1.0, trained=3.0)``: what is read costs a forward pass, as a sampled
    token does, and what is trained on another two.
    """

    read: float = 1.0
    """A token that a reward model reads, or an agent in a later turn."""
    trained: float = 3.0
    """A token that the policy is trained on."""


@dataclass(frozen=True, slots=True)
class Point:
    """What a method reached with some of its means, per question.

    Example: ``Point("majority", 4, (1.0, 0.0), sampled=400.0, seconds=0.1)``.
    """

    method: str
    n: int
    """Answers per question, those of all turns, or paths; of training, the steps it took."""
    scores: tuple[float, ...]
    """Accuracy on each question, expected over draws where that can be computed."""
    sampled: float
    """Tokens that the policy has written, mean over questions."""
    read: float = 0.0
    """Tokens that a reward model was shown, or that agents have read in later turns."""
    trained: float = 0.0
    """Tokens that the policy was trained on."""
    seconds: float = 0.0
    """Seconds on this machine, per question."""

    @property
    def accuracy(self) -> Mean:
        """The mean over questions, with its interval."""
        return mean_of(self.scores)

    def cost(self, factors: Factors) -> float:
        """Count the tokens per question, with what other work counts as."""
        return self.sampled + factors.read * self.read + factors.trained * self.trained

    def as_json(self, factors: Factors) -> dict[str, Any]:
        """Return the point as JSON, with its mean and its cost."""
        means = {"accuracy": asdict(self.accuracy), "cost": self.cost(factors)}
        return {**asdict(self), "scores": list(self.scores), **means}


def best_within(points: Iterable[Point], budget: float, factors: Factors) -> list[Point]:
    """List the best point of each method that costs at most ``budget``, the best method first.

    Of points with the same accuracy, the cheaper one. A method that has no point so cheap is left
    out.
    """
    best: dict[str, Point] = {}
    for point in points:
        if point.cost(factors) > budget:
            continue
        known = best.get(point.method)
        if known is None or _rank(point, factors) < _rank(known, factors):
            best[point.method] = point
    return sorted(best.values(), key=lambda point: _rank(point, factors))


def _rank(point: Point, factors: Factors) -> tuple[float, float]:
    return -point.accuracy.value, point.cost(factors)


def budgets_of(points: Sequence[Point], factors: Factors) -> list[float]:
    """Choose budgets where none are given: powers of two from the cheapest point to the dearest."""
    costs = [point.cost(factors) for point in points]
    budget, found = 1.0, []
    while budget < min(costs):
        budget *= 2
    while budget < 2 * max(costs):
        found.append(budget)
        budget *= 2
    return found
