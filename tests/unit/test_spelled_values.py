"""No two different values merge, and no two spellings of one value part, whatever their form.

By default 12 forms x 10 groups, some 16 000 pairs of answers. This file as a program,
``python tests/unit/test_spelled_values.py 200``, takes more groups and prints what it found.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from random import Random
from typing import Any

import pytest
from graded_values import assert_classes_are_values
from hypothesis import given, settings
from hypothesis import strategies as st
from spelled_values import FORMS, Spelled

from ttrl.answers import Grader
from ttrl.settings import AnswerSettings


def group(form: Callable[[Random], Spelled], rng: Random) -> dict[str, Any]:
    """Spellings of six values of a form, three of each."""
    value_of = {}
    for _ in range(6):
        value, spellings = form(rng)
        for spelling in rng.sample(spellings, min(3, len(spellings))):
            value_of[spelling] = value
    return value_of


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_classes_are_values(grader: Grader, form: Callable[[Random], Spelled], seed: int) -> None:
    rng = Random(seed)
    value_of = group(form, rng)
    assert_classes_are_values(grader, value_of, rng)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_forms_do_not_merge_with_each_other(grader: Grader, seed: int) -> None:
    """All forms at once, with answers alone and in pairs: classes of a group are those of pairs."""
    rng = Random(seed)
    value_of = {}
    for form in FORMS:
        value, spellings = form(rng)
        value_of |= dict.fromkeys(rng.sample(spellings, 2), (form.__name__, value))
    name_of = grader.classes(value_of).name_of
    for a, b in combinations(value_of, 2):
        if value_of[a] == value_of[b]:
            assert name_of[a] == name_of[b], (a, b)
        if "quantities" not in (value_of[a][0], value_of[b][0]):  # units depend on the group
            assert (name_of[a] == name_of[b]) == grader.equivalent(a, b), (a, b)


def main(groups: int) -> None:
    """Count pairs, false merges and false splits by form."""
    pairs, merges, splits = Counter(), Counter(), Counter()
    with Grader(AnswerSettings(deadline_s=60.0)) as grader:
        for form in FORMS:
            for seed in range(groups):
                value_of = group(form, Random(seed))
                name_of = grader.classes(value_of).name_of
                for a, b in combinations(value_of, 2):
                    same = name_of[a] == name_of[b]
                    pairs[form.__name__] += 1
                    merges[form.__name__] += same and value_of[a] != value_of[b]
                    splits[form.__name__] += not same and value_of[a] == value_of[b]
    for name in pairs:
        print(f"{name:16} {pairs[name]:7} pairs {merges[name]:4} merged {splits[name]:4} split")
    print(f"{'all':16} {pairs.total():7} {merges.total():10} {splits.total():11}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
