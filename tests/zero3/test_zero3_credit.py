"""PPO and PRIME on many ranks under DeepSpeed, against one process without it.

What the ranks compute is in ``credit_facts.py``, which is started once per number of ranks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from credit_cases import CREDITS, credit_settings, credit_steps, credits_of
from zero3_cases import output_of, read_samples

from ttrl.learner.local import LocalModel
from ttrl.models.packed_model import load_policy_model


@pytest.fixture(scope="session")
def alone(zero3_folder: Path) -> Callable[[str], dict[str, Any]]:
    """``alone(case)`` is what one process computes, once."""

    @cache
    def compute(case: str) -> dict[str, Any]:
        settings = credit_settings(case, zero3_folder / "untied")
        policy = LocalModel(load_policy_model(settings.model), settings)
        return credit_steps(policy, read_samples(zero3_folder))

    return compute


@pytest.fixture(scope="session")
def credited_by(zero3_folder: Path) -> Callable[[int], dict[str, list[dict[str, Any]]]]:
    """``credited_by(2)`` is what each of two ranks has computed, by case."""

    @cache
    def credited(ranks: int) -> dict[str, list[dict[str, Any]]]:
        output = output_of("credit_facts", zero3_folder, ranks)
        facts: dict[str, list[dict[str, Any]]] = json.loads(output.with_suffix(".json").read_text())
        return facts

    return credited


@pytest.mark.parametrize(("case", "ranks"), [(c, n) for n in (1, 2, 4) for c in credits_of(n)])
def test_any_number_of_ranks_assigns_the_same_credit(
    case: str,
    ranks: int,
    credited_by: Callable[[int], dict[str, list[dict[str, Any]]]],
    alone: Callable[[str], dict[str, Any]],
) -> None:
    """Advantages, every update of both models, and the figures; after one update of each too."""
    truth, parts = alone(case), credited_by(ranks)[case]
    assert len(parts) == ranks
    moved = [sum(part["moved"][i] for part in parts) for i in range(2)]
    assert moved == pytest.approx(truth["moved"], rel=1e-3)
    for found in parts:
        assert found["steps_taken"] == truth["steps_taken"]
        assert found["advantages"] == pytest.approx(truth["advantages"], rel=1e-3, abs=2e-4)
        for ours, theirs in zip(found["metrics"], truth["metrics"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
        for ours, theirs in zip(found["results"], truth["results"], strict=True):
            assert ours == pytest.approx({k: theirs[k] for k in ours}, rel=1e-3, abs=2e-4)


def test_the_cases_are_what_they_are_called(alone: Callable[[str], dict[str, Any]]) -> None:
    """Two updates per step of both models, twice as many of a policy with two epochs."""
    assert alone("ppo")["steps_taken"] == [8, 4]
    assert alone("ppo-lora")["steps_taken"] == [4, 4]
    assert alone("prime")["steps_taken"] == alone("prime-lora")["steps_taken"] == [4, 4]
    assert alone("ppo")["metrics"][1]["reward/kl_coef"] != 0.1
    assert alone("prime")["metrics"][0]["prm/rank_accuracy"] is not None
    for case in CREDITS:
        spread = alone(case)["advantages"]
        assert max(spread) > 0.5 and min(spread) < -0.5
