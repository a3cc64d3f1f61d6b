"""The oracle itself: numbers worked out by hand, and gradients against finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import HEADS, OPTIONS, loss_case
from hand import f64, token_data
from torch.testing import assert_close
from ttrl_kernels import loss_math, ratios
from ttrl_kernels.policy_options import PolicyOptions


def test_uninitialized_memory_is_nan_in_these_tests() -> None:
    assert torch.empty(3).isnan().all() and torch.empty_like(f64(1, 2)).isnan().all()


# --- logits -> logp, entropy. One hidden unit of 1, so that the weight column is the logits.


def dense(logits: list[float], target: int, **options: Any) -> tuple[float, float]:
    weight = f64(*logits)[:, None]
    logp, entropy = loss_math.dense_logprob(
        f64(1)[:, None], weight, torch.tensor([target]), **options
    )
    return logp.item(), entropy.item()


def test_logprob_and_entropy_of_one_to_three_odds() -> None:
    logp, entropy = dense([0, math.log(3)], 1)  # p = 1/4, 3/4
    assert logp == pytest.approx(math.log(0.75), abs=1e-15)
    assert entropy == pytest.approx(0.5623351446188083, abs=1e-15)


def test_entropy_of_equal_logits_is_log_v() -> None:
    assert dense([7, 7, 7, 7, 7], 2) == pytest.approx((-math.log(5), math.log(5)), abs=1e-15)


def test_temperature_divides_the_logits() -> None:
    logp, _ = dense([0, math.log(9)], 1, temperature=2.0)  # odds 9 -> 3
    assert logp == pytest.approx(math.log(0.75), abs=1e-15)


def test_temperature_per_token() -> None:
    weight = f64(0, math.log(9))[:, None]
    logp, _ = loss_math.dense_logprob(
        f64(1, 1)[:, None], weight, torch.tensor([1, 1]), temperature=f64(1, 2)
    )
    assert_close(logp, f64(math.log(0.9), math.log(0.75)))


def test_bias_then_softcap_then_temperature() -> None:
    # u = 0.5 + (log 3 - 0.5) = log 3; tanh(log 3) = 0.8; cap 1 -> 0.8; temperature 0.4 -> 2.
    logp, _ = dense([0, 0.5], 1, bias=f64(0, math.log(3) - 0.5), softcap=1.0, temperature=0.4)
    assert logp == pytest.approx(-math.log1p(math.exp(-2)), abs=1e-15)


def test_impossible_tokens_add_nothing_to_the_entropy_or_its_gradient() -> None:
    bias = f64(0, -math.inf, 0).requires_grad_()
    weight = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    logp, entropy = loss_math.dense_logprob(f64(1)[:, None], weight, torch.tensor([0]), bias=bias)
    assert entropy.item() == pytest.approx(math.log(2), abs=1e-15)
    grad_logp, grad_entropy = (
        torch.autograd.grad(x.sum(), bias, retain_graph=True)[0] for x in (logp, entropy)
    )
    assert_close(grad_logp, f64(0.5, 0, -0.5))
    assert_close(grad_entropy, f64(0, 0, 0))


# --- ratio


def test_token_ratio() -> None:
    ratio = ratios.policy_ratio(f64(-1, -2), token_data(f64(0, 0), old=f64(-1.5, -1.9)), "token")
    assert_close(ratio, f64(1.6487212707001282, 0.9048374180359595))


def test_on_policy_ratio_is_one_and_carries_the_gradient() -> None:
    logp = f64(-1, -2).requires_grad_()
    ratio = ratios.policy_ratio(logp, token_data(f64(0, 0)), "token")
    assert ratio.tolist() == [1, 1]
    assert torch.autograd.grad(ratio.sum(), logp)[0].tolist() == [1, 1]


def test_sequence_ratio_is_the_geometric_mean_over_interleaved_sequences() -> None:
    ids = torch.tensor([7, 3, 7, 7])
    logp = f64(-1, -1, -1, -1).requires_grad_()
    old = logp.detach() - f64(0.1, -0.2, 0.3, 0.8)  # sequence 7 has mean 0.4
    ratio = ratios.policy_ratio(logp, token_data(f64(0, 0, 0, 0), old=old, ids=ids), "sequence")
    e4, e2 = math.exp(0.4), math.exp(-0.2)
    assert_close(ratio, f64(e4, e2, e4, e4))
    (grad,) = torch.autograd.grad((ratio * f64(1, 1, 2, 0)).sum(), logp)
    assert_close(grad, f64(e4, e2, e4, e4))  # 3·e^0.4 shared by three tokens


def test_log_ratio_is_clamped_with_the_matching_gradient() -> None:
    d = f64(19, 21, -21, math.inf).requires_grad_()
    ratio = ratios.clamp_log_ratio(d).exp()
    assert_close(ratio, torch.exp(f64(19, 20, -20, 20)))
    assert_close(torch.autograd.grad(ratio.sum(), d)[0], f64(math.exp(19), 0, 0, 0))


# --- KL, entropy, aggregation


def test_weights_kl_and_entropy_add_up() -> None:
    losses = loss_math.token_losses(
        f64(-1, -1),
        f64(0.5, 2),
        token_data(f64(2, -2), weights=f64(0.25, 0.5), old=f64(-1, -1), ref=f64(-1.5, -1)),
        PolicyOptions(kl="k1", kl_coef=0.1, entropy_coef=0.01),
    )
    # -r·A + 0.1·k1 - 0.01·H: (-2 + 0.05 - 0.005)/4 and (2 + 0 - 0.02)/2
    assert_close(losses.loss, f64(-0.48875, 0.99))
    assert_close(losses.kl, f64(0.5, 0))


def test_coefficient_zero_switches_an_infinite_kl_off() -> None:
    data = token_data(f64(1), old=f64(-1), ref=f64(-math.inf))
    losses = loss_math.token_losses(f64(-1), f64(0), data, PolicyOptions(kl="k1", kl_coef=0))
    assert losses.loss.item() == -1 and losses.kl.item() == math.inf


def test_token_gradients_are_those_of_the_loss() -> None:
    data = token_data(f64(2, 3), weights=f64(0.5, 0.25), old=f64(-1, -1))
    grad_logp, grad_entropy = loss_math.token_gradients(
        f64(-1, -1), f64(0, 0), data, PolicyOptions(entropy_coef=0.1)
    )
    assert_close(grad_logp, f64(-1, -0.75))
    assert_close(grad_entropy, f64(-0.05, -0.025))
    assert loss_math.token_gradients(f64(-1, -1), f64(0, 0), data, PolicyOptions())[1] is None


# --- the whole oracle


# Stop-gradients (on-policy, CISPO, DPPO, the + of a KL estimator) are invisible to finite
# differences; their gradients are the hand-computed ones.
STOPPED = ("on_policy", "cispo", "dppo", "+")
SMOOTH = [k for k in OPTIONS if not any(part in k for part in STOPPED)]


@pytest.mark.parametrize("options", SMOOTH)
def test_gradcheck_options(options: str) -> None:
    check_gradients(head="bias", options=options)


@pytest.mark.parametrize("head", HEADS)
def test_gradcheck_heads(head: str) -> None:
    check_gradients(head=head, options="entropy")


def check_gradients(head: str, options: str) -> None:
    hidden, weight, targets, keywords = loss_case(head=head, options=options, shape=(9, 3, 5))
    bias = keywords.pop("bias", None)

    def loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return loss_math.policy_loss_reference(hidden, weight, targets, bias=bias, **keywords).loss

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias), atol=1e-6, rtol=1e-5)


def test_dead_tokens_touch_nothing() -> None:
    hidden, weight, targets, keywords = loss_case(options="sequence_all", head="all")
    keywords.pop("bias")
    dead = keywords["token_weights_T"] == 0
    assert dead.any() and not dead.all()
    full = loss_math.policy_loss_reference(hidden, weight, targets, **keywords)
    live_keywords = {k: x[~dead] if isinstance(x, torch.Tensor) else x for k, x in keywords.items()}
    live = loss_math.policy_loss_reference(hidden[~dead], weight, targets[~dead], **live_keywords)
    assert full.loss.item() == live.loss.item()
    (grad,) = torch.autograd.grad(full.loss, hidden)
    assert grad.isfinite().all() and (grad[dead] == 0).all() and (grad[~dead] != 0).any()
    assert (full.logp_T[dead] == 0).all() and (full.kl_T[dead] == 0).all()
    assert full.logp_T[~dead].tolist() == live.logp_T.tolist()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"policy": "trpo"}, "policy is 'trpo', expected one of ppo_clip, cispo, sapo, gmpo, dppo"),
        ({"ratio_level": "turn"}, "ratio_level is 'turn', expected one of token, sequence"),
        ({"kl": "k2+"}, r"kl is 'k2\+', expected one of k1, k2, k3, abs, k1\+, k3\+, abs\+"),
        ({"clip_low": -0.1}, "clip_low is -0.1, expected .* 0.2 clips at 0.8"),
        ({"clip_high": math.nan}, "clip_high is nan, expected .* 0.2 clips at 1.2"),
        ({"dual_clip": 1.0}, "dual_clip is 1.0, expected a ratio above 1"),
        ({"dual_clip": 3.0, "policy": "cispo"}, "dual_clip .* only exists for policy='ppo_clip'"),
        ({"off_policy_mask": -0.1}, "off_policy_mask is -0.1, expected a mean log-ratio >= 0"),
        ({"off_policy_mask": math.nan}, "off_policy_mask is nan, expected a mean log-ratio >= 0"),
        (
            {"policy": "gmpo", "ratio_level": "sequence"},
            "ratio_level is 'sequence' with policy='gmpo', which makes one ratio for a sequence",
        ),
        ({"kl_coef": -0.1}, "kl_coef is -0.1, expected a finite number >= 0"),
        ({"entropy_coef": math.inf}, "entropy_coef is inf, expected a finite number"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyOptions(**options)
