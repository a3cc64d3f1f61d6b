"""The spread of two models' logits, from their log-probs of sampled tokens alone."""

from __future__ import annotations

import math

import pytest
import torch

from ttrl.rollout.agreement import LIMIT, compare

Logprobs = tuple[list[float], ...]


def sampled_logprobs(spread: float, sharpness: float, temperature: float) -> Logprobs:
    """Log-probs of 4000 tokens, sampled by a model whose logits have errors of ``spread``."""
    generator = torch.Generator().manual_seed(0)
    logits_NV = sharpness * torch.randn(4000, 32, generator=generator, dtype=torch.float64)
    errors_NV = spread * torch.randn(4000, 32, generator=generator, dtype=torch.float64)
    engine_NV = ((logits_NV + errors_NV) / temperature).log_softmax(-1)
    policy_NV = (logits_NV / temperature).log_softmax(-1)
    token_N1 = torch.multinomial(engine_NV.exp(), 1, generator=generator)
    return tuple(x.gather(1, token_N1).squeeze(1).tolist() for x in (engine_NV, policy_NV))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("sharpness", [0.5, 3.0, 10.0])
def test_it_finds_the_spread_whatever_temperature_and_certainty(
    sharpness: float, temperature: float
) -> None:
    engine, policy = sampled_logprobs(0.05, sharpness, temperature)
    assert 0.95 * 0.05 < compare(engine, policy, temperature).logits < 1.05 * math.sqrt(2) * 0.05


def test_the_mean_of_log_probs_does_not() -> None:
    sure, unsure = (compare(*sampled_logprobs(0.05, s, 1.0), 1.0).mean for s in (10.0, 0.5))
    assert sure < 0.5 * unsure


def test_by_hand() -> None:
    half, quarter = math.log(0.5), math.log(0.25)
    found = compare([half + 0.1, quarter - 0.3], [half, quarter], 2.0)
    assert found.tokens == 2
    assert found.mean == pytest.approx(0.2)
    assert found.largest == pytest.approx(0.3)
    assert found.logits == pytest.approx(2 * math.sqrt((0.01 + 0.09) / (0.25 + 0.5625)))


def test_tokens_that_are_certain_show_rounding_of_log_probs_only() -> None:
    found = compare([-3e-7] * 100, [0.0] * 100, 1.0)  # 1 - p is nothing, and no divisor
    assert found.logits == pytest.approx(3e-5)
    assert found.holds("float32")


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_is_not_finite_is_no_agreement(value: float) -> None:
    for engine, policy in (([value], [-1.0]), ([-1.0], [value])):
        assert not compare(engine, policy, 1.0).holds("bfloat16")


def test_the_limits_lie_between_rounding_and_another_model() -> None:
    for dtype, rounding in (("float32", 1e-5), ("bfloat16", 0.12)):
        assert compare(*sampled_logprobs(rounding, 3.0, 1.0), 1.0).holds(dtype)
        assert not compare(*sampled_logprobs(0.4, 3.0, 1.0), 1.0).holds(dtype)
        assert LIMIT[dtype] > 1.5 * rounding
