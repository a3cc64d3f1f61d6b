"""What must hold of the classes of answers whose values are known."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from random import Random

from ttrl.answers import Grader


def assert_classes_are_values(grader: Grader, value_of: Mapping[str, object], rng: Random) -> None:
    """Two answers are in one class if they have one value, in whatever order they come."""
    answers = list(value_of)
    found = grader.classes(answers)
    assert not found.undecided
    for a, b in combinations(answers, 2):
        assert (found.name_of[a] == found.name_of[b]) == (value_of[a] == value_of[b]), (a, b)
    rng.shuffle(answers)
    assert grader.classes(answers).name_of == found.name_of
