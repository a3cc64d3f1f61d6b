"""Policy terms: numbers worked out by hand, and other projects' formulas of the same losses."""

from __future__ import annotations

import math

import pytest
import torch
from hand import f64, token_data
from torch.testing import assert_close
from ttrl_kernels import loss_math
from ttrl_kernels.policy_options import PolicyOptions
from ttrl_kernels.policy_terms import POLICY_TERMS

# --- policy terms: ratio, advantage -> loss, gradient by the ratio, clipped

PPO = [
    (1.5, 2, None, -2.4, 0, True),  # above 1.2 and better than average: capped
    (0.5, 2, None, -1.0, -2, False),
    (1.1, 2, None, -2.2, -2, False),
    (0.5, -2, None, 1.6, 0, True),  # below 0.8 and worse than average: floored
    (1.5, -2, None, 3.0, 2, False),
    (5.0, -2, None, 10.0, 2, False),
    (5.0, -2, 3.0, 6.0, 0, True),  # dual clip: at most 3·|A|
    (2.5, -2, 3.0, 5.0, 2, False),
    (5.0, 2, 3.0, -2.4, 0, True),  # dual clip leaves A > 0 alone
    (1.5, 0, 3.0, 0.0, 0, False),
]


@pytest.mark.parametrize("ratio, advantage, dual, loss, grad, clipped", PPO)
def test_ppo_clip(
    ratio: float, advantage: float, dual: float | None, loss: float, grad: float, clipped: bool
) -> None:
    r = f64(ratio).requires_grad_()
    options = PolicyOptions(dual_clip=dual)
    term, flag = POLICY_TERMS["ppo_clip"](r, r.log(), token_data(f64(advantage)), options)
    assert term.item() == pytest.approx(loss, abs=1e-15)
    assert torch.autograd.grad(term.sum(), r)[0].item() == grad
    assert flag.item() is clipped


def test_ppo_clip_bounds_are_two_settings() -> None:
    options = PolicyOptions(clip_low=0.3, clip_high=0.28)
    ppo_clip = POLICY_TERMS["ppo_clip"]
    term, flag = ppo_clip(f64(1.25, 0.75), f64(0, 0), token_data(f64(1, -1)), options)
    assert_close(term, f64(-1.25, 0.75))
    assert flag.tolist() == [False, False]
    term, flag = ppo_clip(f64(1.29, 0.69), f64(0, 0), token_data(f64(1, -1)), options)
    assert_close(term, f64(-1.28, 0.7))
    assert flag.tolist() == [True, True]


def test_cispo_caps_the_weight_and_keeps_the_gradient() -> None:
    logp = f64(-0.7, -0.7, -0.7).requires_grad_()
    ratio = torch.exp(logp - logp.detach()) * f64(1.5, 1.1, 0.5)
    term, flag = POLICY_TERMS["cispo"](ratio, logp, token_data(f64(2, 2, -1)), PolicyOptions())
    assert_close(term, f64(1.68, 1.54, -0.56))
    assert_close(torch.autograd.grad(term.sum(), logp)[0], f64(-2.4, -2.2, 0.8))
    assert flag.tolist() == [True, False, True]


def test_sapo_fades_the_gradient_out() -> None:
    """Gates sigma(0) = 1/2, sigma(ln 3) = 3/4; its slope is 4 sigma (1 - sigma), 1 at ratio 1."""
    ratio = f64(1, 1 + math.log(3), 1, 1 + math.log(3) / 1.05).requires_grad_()
    term, flag = POLICY_TERMS["sapo"](
        ratio, ratio.log(), token_data(f64(2, 2, -1, -1)), PolicyOptions()
    )
    assert_close(term, f64(-4, -6, 2 / 1.05, 3 / 1.05))
    assert_close(torch.autograd.grad(term.sum(), ratio)[0], f64(-2, -1.5, 1, 0.75))
    assert not flag.any()


def test_policy_none_is_reinforce_when_on_policy() -> None:
    logp = f64(-0.7, -2).requires_grad_()
    losses = loss_math.token_losses(
        logp, f64(0, 0), token_data(f64(3, -4), weights=f64(0.5, 2)), PolicyOptions(policy="none")
    )
    assert losses.loss.tolist() == [-1.5, 8]
    assert torch.autograd.grad(losses.loss.sum(), logp)[0].tolist() == [-1.5, 8]
    assert not losses.clipped.any()


# --- whole sequences


IDS = torch.tensor([5, 2, 5, 5, 2])


def test_gmpo_is_the_geometric_mean_of_clipped_ratios() -> None:
    """Sequence 5, A = 2: log-ratios 0.5 (clipped at 0.4), 0.1, -0.8: their mean is -0.1.

    Sequence 2, A = -1: log-ratios -0.6 (clipped at -0.4) and 0.8: their mean is 0.2.
    """
    logp = f64(-1, -1, -1, -1, -1).requires_grad_()
    old = logp.detach() - f64(0.5, -0.6, 0.1, -0.8, 0.8)
    tokens = token_data(f64(2, -1, 2, 2, -1), old=old, ids=IDS)
    options = PolicyOptions(policy="gmpo", clip_low=0.4, clip_high=0.4)
    losses = loss_math.token_losses(logp, f64(0, 0, 0, 0, 0), tokens, options)
    good, bad = math.exp(-0.1), math.exp(0.2)
    assert_close(losses.loss, f64(-2 * good, bad, -2 * good, -2 * good, bad))
    assert losses.clipped.tolist() == [True, True, False, False, False]
    # d(3·-2R)/dlogp_t = -6·R/3 for the sequence's tokens that are not clipped.
    (grad,) = torch.autograd.grad(losses.loss.sum(), logp)
    assert_close(grad, f64(0, 0, -2 * good, -2 * good, bad))


def test_gmpo_a_token_without_an_advantage_keeps_its_place_in_the_mean() -> None:
    logp = f64(-1, -1).requires_grad_()
    tokens = token_data(f64(0, 1), old=f64(-1.3, -1.2), ids=torch.tensor([0, 0]))
    options = PolicyOptions(policy="gmpo", clip_low=0.4, clip_high=0.4)
    losses = loss_math.token_losses(logp, f64(0, 0), tokens, options)
    assert_close(losses.loss, f64(0, -math.exp(0.1)))  # (0 + 0.2) / 2
    (grad,) = torch.autograd.grad(losses.loss.sum(), logp)
    assert_close(grad, f64(0, -math.exp(0.1) / 2))


def test_off_policy_mask_drops_bad_sequences_that_were_left_behind() -> None:
    """Means of old - logp: 0.4 in sequence 5, 0.1 in sequence 2."""
    logp = f64(-1, -1, -1, -1, -1).requires_grad_()
    old = logp.detach() + f64(0.9, 0.3, -0.1, 0.4, -0.1)
    tokens = token_data(f64(-1, -1, -1, 2, -1), old=old, ids=IDS)

    def loss(bound: float) -> loss_math.TokenLosses:
        options = PolicyOptions(policy="none", off_policy_mask=bound)
        return loss_math.token_losses(logp, f64(0, 0, 0, 0, 0), tokens, options)

    r = [math.exp(-x) for x in (0.9, 0.3, -0.1, 0.4, -0.1)]
    assert_close(loss(0.39).loss, f64(0, r[1], 0, -2 * r[3], r[4]))
    assert loss(0.39).clipped.tolist() == [True, False, True, False, False]
    assert_close(loss(0.41).loss, f64(r[0], r[1], r[2], -2 * r[3], r[4]))
    (grad,) = torch.autograd.grad(loss(0.39).loss.sum(), logp)
    assert_close(grad, f64(0, r[1], 0, -2 * r[3], r[4]))


def test_off_policy_mask_leaves_kl_and_entropy_alone() -> None:
    tokens = token_data(f64(-1), old=f64(0), ref=f64(-1.5), ids=torch.tensor([0]))
    options = PolicyOptions(off_policy_mask=0.5, kl="k1", kl_coef=0.1, entropy_coef=0.01)
    losses = loss_math.token_losses(f64(-1), f64(2), tokens, options)
    assert_close(losses.loss, f64(0.1 * 0.5 - 0.01 * 2))


# --- DPPO: p_old, p, advantage -> dropped


MOVES = [
    (0.5, 0.75, 1, True, True),  # up by 0.25; its KL divergence is 0.1438
    (0.5, 0.65, 1, False, False),  # up by 0.15; 0.0472
    (0.5, 0.25, 1, False, False),  # down, and pushed up: it may come back
    (0.5, 0.25, -1, True, True),  # down by 0.25; 0.1438
    (0.5, 0.35, -1, False, False),
    (0.5, 0.75, -1, False, False),
    (0.5, 0.75, 0, False, False),
    (0.001, 0.1, 1, False, True),  # 100 times as likely; up by 0.099; 0.0997
    (0.9, 0.99, 1, False, True),  # up by 0.09; 0.1445
]


@pytest.mark.parametrize("p_old, p, advantage, by_tv, by_kl", MOVES)
@pytest.mark.parametrize("kind", ["dppo_tv", "dppo_kl"])
def test_dppo(
    kind: str, p_old: float, p: float, advantage: float, by_tv: bool, by_kl: bool
) -> None:
    logp = f64(p).log().requires_grad_()
    bounds = {"dppo_tv": 0.2, "dppo_kl": 0.098}[kind]
    options = PolicyOptions(policy=kind, clip_low=bounds, clip_high=bounds)
    tokens = token_data(f64(advantage), old=f64(p_old).log())
    losses = loss_math.token_losses(logp, f64(0), tokens, options)
    dropped = {"dppo_tv": by_tv, "dppo_kl": by_kl}[kind]
    weight = 0.0 if dropped else advantage * min(p / p_old, 20)
    assert losses.clipped.item() is dropped
    assert losses.loss.item() == pytest.approx(-weight * math.log(p), rel=1e-12)
    (grad,) = torch.autograd.grad(losses.loss.sum(), logp)
    assert grad.item() == pytest.approx(-weight, rel=1e-12)


def test_dppo_divergence_by_hand() -> None:
    """0.5 -> 0.75: ½·ln(2/3) + ½·ln 2 = ½·ln(4/3) = 0.14384: between these two bounds."""
    tokens = token_data(f64(1), old=f64(0.5).log())
    for bound, dropped in ((0.1438, True), (0.1439, False)):
        options = PolicyOptions(policy="dppo_kl", clip_high=bound)
        term = POLICY_TERMS["dppo_kl"](f64(1.5), f64(0.75).log(), tokens, options)
        assert term[1].item() is dropped


def test_dppo_bounds_are_two_settings() -> None:
    logp, old = f64(0.75, 0.25).log(), f64(0.5, 0.5).log()
    tokens = token_data(f64(1, -1), old=old)
    for kind in ("dppo_tv", "dppo_kl"):
        options = PolicyOptions(policy=kind, clip_low=0.01, clip_high=0.3)
        assert loss_math.token_losses(logp, old, tokens, options).clipped.tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["dppo_tv", "dppo_kl"])
def test_dppo_of_certain_tokens_is_finite(kind: str, dtype: torch.dtype) -> None:
    """p is 1 in both, in one of them, or just above by rounding."""
    logp = torch.tensor([0, 0, -1e-9, 1e-9, 0], dtype=dtype).requires_grad_()
    old = torch.tensor([0, -1e-9, 0, 0, -1], dtype=dtype)
    tokens = token_data(torch.ones(5, dtype=dtype), old=old)
    losses = loss_math.token_losses(logp, old, tokens, PolicyOptions(policy=kind))
    (grad,) = torch.autograd.grad(losses.loss.sum(), logp)
    assert losses.loss.isfinite().all() and grad.isfinite().all()
    assert losses.clipped.tolist() == [False] * 4 + [True]


# --- formulas of other projects


RATIOS = f64(0.1, 0.79, 0.81, 1, 1.19, 1.21, 2.9, 3.1, 4.9, 5.1, 40)


@pytest.mark.parametrize("advantage", [1.5, -0.7, 0.0])
def test_cispo_with_one_bound_is_trls(advantage: float) -> None:
    """TRL: min(r, epsilon_high), at the ratio's value; ours: clip_low 1, clip_high that less 1."""
    cap = 5.0
    found = []
    for name in ("ours", "trl"):
        logp = RATIOS.log().requires_grad_()
        if name == "ours":
            options = PolicyOptions(policy="cispo", clip_low=1, clip_high=cap - 1)
            tokens = token_data(torch.full_like(RATIOS, advantage), old=torch.zeros_like(RATIOS))
            loss = loss_math.token_losses(logp, logp, tokens, options).loss
        else:
            loss = -RATIOS.clamp(max=cap) * advantage * logp
        found.append((loss.detach(), *torch.autograd.grad(loss.sum(), logp)))
    assert_close(found[0], found[1])


@pytest.mark.parametrize("advantage", [1.5, -0.7, 0.0])
@pytest.mark.parametrize("delta", [1.3, 3.0, 5.0])
def test_the_dual_clip_is_the_two_sided_clip(delta: float, advantage: float) -> None:
    """INTELLECT-2 and TRL's delta: min(min(r, δ)·A, clip(r)·A), for δ above 1 + clip_high."""
    found = []
    for name in ("dual", "two-sided"):
        r = RATIOS.clone().requires_grad_()
        if name == "dual":
            tokens = token_data(torch.full_like(RATIOS, advantage))
            options = PolicyOptions(dual_clip=delta)
            loss, _ = POLICY_TERMS["ppo_clip"](r, r.log(), tokens, options)
        else:
            loss = -torch.minimum(r.clamp(max=delta) * advantage, r.clamp(0.8, 1.2) * advantage)
        found.append((loss.detach(), *torch.autograd.grad(loss.sum(), r)))
    assert_close(found[0], found[1])


def test_kl_cov_is_a_penalty_on_the_move_of_some_tokens() -> None:
    """-A·r + λ·|log r|, with λ of a few tokens only."""
    logp = f64(-1, -1, -1, -1).requires_grad_()
    old = logp.detach() - f64(0.3, 0.3, -0.2, 0)
    tokens = token_data(f64(2, 2, -1, 1), old=old, penalty=f64(0, 0.5, 0.5, 0.5))
    losses = loss_math.token_losses(logp, f64(0, 0, 0, 0), tokens, PolicyOptions(policy="none"))
    up, down = math.exp(0.3), math.exp(-0.2)
    assert_close(losses.loss, f64(-2 * up, -2 * up + 0.15, down + 0.1, -1))
    (grad,) = torch.autograd.grad(losses.loss.sum(), logp)
    assert_close(grad, f64(-2 * up, -2 * up + 0.5, down - 0.5, -1))
