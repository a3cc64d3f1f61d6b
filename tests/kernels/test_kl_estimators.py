"""KL estimators: numbers worked out by hand, and what their gradients are in the mean."""

from __future__ import annotations

import math

import pytest
import torch
from hand import f64, token_data
from torch.testing import assert_close
from ttrl_kernels import loss_math
from ttrl_kernels.kl_estimators import kl_estimate
from ttrl_kernels.policy_options import PolicyOptions

K3 = 0.10653065971263342


@pytest.mark.parametrize(
    "kind, value, grad",
    [
        ("k1", 0.5, 1),
        ("k2", 0.125, 0.5),
        ("k3", K3, 0.3934693402873666),
        ("abs", 0.5, 1),
        ("k1+", 0.5, 0.5),
        ("k3+", K3, 0.5),
        ("abs+", 0.5, 0.5),
    ],
)
def test_kl_estimators(kind: str, value: float, grad: float) -> None:
    logp = f64(-1).requires_grad_()
    kl = kl_estimate(logp, f64(-1.5), kind)
    assert kl.item() == pytest.approx(value, abs=1e-15)
    assert torch.autograd.grad(kl.sum(), logp)[0].item() == pytest.approx(grad, abs=1e-15)


@pytest.mark.parametrize("kind, value, grad", [("abs", 0.5, -1), ("abs+", 0.5, -0.5)])
def test_abs_below_the_reference(kind: str, value: float, grad: float) -> None:
    logp = f64(-1.5).requires_grad_()
    kl = kl_estimate(logp, f64(-1), kind)
    assert kl.item() == value
    assert torch.autograd.grad(kl.sum(), logp)[0].item() == grad


def test_k3_beyond_the_clamp_is_constant() -> None:
    logp = f64(-50, 0).requires_grad_()
    kl = kl_estimate(logp, f64(0, -50), "k3")
    assert_close(kl, f64(math.exp(20) - 21, math.exp(-20) + 19))
    assert torch.autograd.grad(kl.sum(), logp)[0].tolist() == [0, 0]


def test_bias_correction_multiplies_value_and_gradient_by_the_ratio() -> None:
    """k1 = 0.5 and log-ratio 0.2: r·k1, and r·1 + k1·r; of k3+ the gradient is r·0.5 + k3·r."""
    r = math.exp(0.2)
    for kind, value, slope in (("k1", 0.5, 1), ("k3+", K3, 0.5)):
        logp = f64(-1).requires_grad_()
        tokens = token_data(f64(0), old=f64(-1.2), ref=f64(-1.5))
        options = PolicyOptions(kl=kind, kl_coef=0.1, kl_bias_correction=True)
        losses = loss_math.token_losses(logp, f64(0), tokens, options)
        assert_close(losses.kl.detach(), f64(r * value))
        (grad,) = torch.autograd.grad(losses.loss.sum(), logp)
        assert_close(grad, f64(0.1 * r * (slope + value)))


def test_the_ratio_of_a_corrected_kl_is_the_tokens_own() -> None:
    ids = torch.tensor([0, 0])
    tokens = token_data(f64(0, 0), old=f64(-1.2, -1), ref=f64(-2, -2), ids=ids)
    options = PolicyOptions(ratio_level="sequence", kl="k1", kl_bias_correction=True)
    losses = loss_math.token_losses(f64(-1, -1), f64(0, 0), tokens, options)
    assert_close(losses.kl, f64(math.exp(0.2), 1))


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_a_corrected_kl_is_that_of_the_policy_whoever_sampled(kind: str) -> None:
    """Over all of a vocabulary of three, weighted by the sampler: value and gradient of the KL.

    Uncorrected, no estimator of an older policy's tokens has either.
    """
    logits = f64(0.3, -0.5, 1).requires_grad_()
    ref, old = f64(-0.2, 0.4, 0.1).log_softmax(0), f64(1, 0, -1).log_softmax(0)
    logp = logits.log_softmax(0)
    truth = (logp.exp() * (logp - ref)).sum()
    found = {}
    for corrected in (False, True):
        tokens = token_data(f64(0, 0, 0), weights=old.exp(), old=old, ref=ref)
        options = PolicyOptions(kl=kind, kl_coef=1, kl_bias_correction=corrected)
        loss = loss_math.token_losses(logp, f64(0, 0, 0), tokens, options).loss.sum()
        found[corrected] = loss, torch.autograd.grad(loss, logits, retain_graph=True)[0]
    expected = truth, torch.autograd.grad(truth, logits)[0]
    assert_close(found[True], expected)
    assert (found[False][0] - expected[0]).abs() > 0.01
    assert (found[False][1] - expected[1]).abs().max() > 0.01


def test_in_the_mean_the_gradient_of_k2_is_that_of_the_kl() -> None:
    """On tokens of the policy itself; so that of every estimator with a + is."""
    logits, ref = f64(0.3, -0.5, 1).requires_grad_(), f64(-0.2, 0.4, 0.1).log_softmax(0)
    logp = logits.log_softmax(0)
    truth = (logp.exp() * (logp - ref)).sum()
    (expected,) = torch.autograd.grad(truth, logits, retain_graph=True)
    for kind in ("k2", "k1+", "k3+", "abs+"):
        loss = (logp.exp().detach() * kl_estimate(logp, ref, kind)).sum()
        assert_close(torch.autograd.grad(loss, logits, retain_graph=True)[0], expected)
