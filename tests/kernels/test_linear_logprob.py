"""`linear_logprob` against the float64 oracle: values, and gradients of both outputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from cases import BACKENDS, HEADS, Case, V, as_float64, head_case, leaves
from tolerances import assert_no_worse
from ttrl_kernels import LogProbs, chunks, linear_logprob
from ttrl_kernels.loss_math import dense_logprob

if TYPE_CHECKING:
    from conftest import Recorder

READS = {"logp": (1.0, 0.0), "entropy": (0.0, 1.0), "both": (0.7, -1.3)}


def run(
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]], case: Case, reads: str = "both"
) -> dict[str, torch.Tensor]:
    """Outputs, and gradients of a different multiple of each token's logp and entropy, by name."""
    hidden, weight, targets, keywords = case
    logp, entropy = function(hidden, weight, targets, **keywords)
    on_logp, on_entropy = READS[reads]
    scale = torch.linspace(0.1, 1, len(targets), dtype=logp.dtype)
    inputs = leaves(hidden, weight, keywords)
    # An output that is not read gets no gradient at all, as in a loss that ignores it.
    total = sum(c * (x * scale).sum() for c, x in ((on_logp, logp), (on_entropy, entropy)) if c)
    grads = torch.autograd.grad(total, list(inputs.values()))
    outputs = {"logp_T": logp.detach(), "entropy_T": entropy.detach()}
    return outputs | dict(zip(inputs, grads, strict=True))


def compare(
    case: Case, dtype: torch.dtype, reads: str = "both", backend: str = "auto"
) -> dict[str, torch.Tensor]:
    ours = run(partial(linear_logprob, backend=backend), case, reads)
    truth, plain = run(dense_logprob, as_float64(*case), reads), run(dense_logprob, case, reads)
    for name in truth:
        assert_no_worse(name, dtype, ours[name], truth[name], plain[name])
    return ours


@pytest.mark.parametrize("backend, dtype", BACKENDS)
@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("head", HEADS)
def test_against_the_oracle(
    head: str, reads: str, backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "LOGITS_BYTES", 7 * V * 4)
    ours = compare(head_case(dtype, head), dtype, reads, backend)
    assert ours["logp_T"].dtype == torch.promote_types(dtype, torch.float32)
    assert ours["hidden"].dtype == dtype


@pytest.mark.parametrize("shape", [(1, 16, 101), (6, 1, 1), (5, 7, 2), (64, 33, 257)], ids=str)
def test_odd_shapes(shape: tuple[int, int, int]) -> None:
    compare(head_case(torch.float32, "bias", seed=3, shape=shape), torch.float32)


@pytest.mark.parametrize("head", ["plain", "all"])
def test_gradcheck(head: str) -> None:
    hidden, weight, targets, keywords = head_case(head=head, shape=(6, 3, 5))
    bias = keywords.pop("bias", None)

    def outputs(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> LogProbs:
        return linear_logprob(hidden, weight, targets, bias=bias, **keywords)

    assert torch.autograd.gradcheck(outputs, (hidden, weight, bias))


@pytest.mark.parametrize("offset", [-1e4, -100.0, 1e4])
def test_a_common_offset_of_all_logits_cancels(offset: float) -> None:
    """Softmax ignores it, also far below zero, where a maximum that starts at 0 would underflow.

    Offsets and logits are multiples of 1/64 below 2^14: float32 holds every sum of them exactly,
    so the results must agree to the last bit.
    """
    hidden, weight, targets, _ = head_case(torch.float32)
    logits = (hidden @ weight.t() * 64).round().detach() / 64
    identity = torch.eye(V).requires_grad_()
    logits, bias = logits.requires_grad_(), torch.full((V,), offset).requires_grad_()
    centered = run(linear_logprob, (logits, identity, targets, {}))
    shifted = run(linear_logprob, (logits, identity, targets, {"bias": bias}))
    for name, value in centered.items():
        assert torch.equal(shifted[name], value), name
    assert centered["entropy_T"].min() > 0.1


def test_extreme_logits_are_certain_and_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], requires_grad=True)
    targets = torch.tensor([0, 1])
    out = run(linear_logprob, (logits, torch.eye(3).requires_grad_(), targets, {}), "logp")
    log3 = 1.0986122886681098
    torch.testing.assert_close(out["logp_T"], torch.tensor([0.0, -log3]))
    torch.testing.assert_close(out["entropy_T"], torch.tensor([0.0, log3]))
    expected = torch.tensor([[0.0, 0.0, 0.0], [-1 / 3, 2 / 3, -1 / 3]])  # scales 0.1 and 1
    torch.testing.assert_close(out["hidden"], expected)


@pytest.mark.parametrize("reads", READS)
def test_ignored_targets_cost_nothing_and_give_zero(reads: str, recorder: Recorder) -> None:
    hidden, weight, targets, keywords = head_case(head="all")
    targets[::3] = -100
    ours = run(linear_logprob, (hidden, weight, targets, keywords), reads)
    kept = targets != -100
    assert recorder.stats_rows == recorder.grad_rows == [int(kept.sum())]
    assert (ours["logp_T"][~kept] == 0).all() and (ours["entropy_T"][~kept] == 0).all()
    assert (ours["hidden"][~kept] == 0).all()
    hidden, weight, _, keywords = as_float64(hidden, weight, targets, keywords)
    logp, entropy = dense_logprob(hidden, weight, targets.clamp(min=0), **keywords)
    scale = torch.linspace(0.1, 1, len(targets), dtype=torch.float64) * kept
    on_logp, on_entropy = READS[reads]
    total = (on_logp * logp * scale + on_entropy * entropy * scale).sum()
    expected = torch.autograd.grad(total, (hidden, weight))
    torch.testing.assert_close(ours["logp_T"][kept], logp[kept])
    torch.testing.assert_close(ours["hidden"], expected[0])
    torch.testing.assert_close(ours["weight"], expected[1])


def test_rows_nobody_reads_are_not_recomputed(recorder: Recorder) -> None:
    hidden, weight, targets, _ = head_case()
    logp, _ = linear_logprob(hidden, weight, targets)
    logp[3:8].sum().backward()
    assert recorder.grad_rows == [5]
    assert (hidden.grad[8:] == 0).all() and (hidden.grad[3:8] != 0).any()


@pytest.mark.parametrize("reads", READS)
def test_an_entropy_nobody_reads_adds_no_work(reads: str, recorder: Recorder) -> None:
    run(linear_logprob, head_case(), reads)
    assert [grads.entropy is None for grads in recorder.grads] == [reads == "logp"]


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen_inputs(frozen: str) -> None:
    hidden, weight, targets, keywords = head_case()
    both = run(linear_logprob, (hidden, weight, targets, keywords))
    {"hidden": hidden, "weight": weight}[frozen].requires_grad_(False)
    one = run(linear_logprob, (hidden, weight, targets, keywords))
    other = "weight" if frozen == "hidden" else "hidden"
    assert frozen not in one and torch.equal(one[other], both[other])


def test_backward_twice_and_expanded_gradients() -> None:
    hidden, weight, targets, _ = head_case()
    logp, _ = linear_logprob(hidden, weight, targets)
    expanded = torch.tensor(2.0, dtype=torch.float64).expand(len(targets))
    logp.backward(expanded, retain_graph=True)
    first = hidden.grad.clone()
    hidden.grad = None
    logp.backward(torch.full((2 * len(targets),), 2.0, dtype=torch.float64)[::2])
    assert torch.equal(hidden.grad, first) and first.abs().max() > 0


def test_no_tokens() -> None:
    hidden, weight, targets, _ = head_case(shape=(0, 16, 101))
    logp, entropy = linear_logprob(hidden, weight, targets)
    (logp.sum() + entropy.sum()).backward()
    assert logp.shape == entropy.shape == (0,)
    assert hidden.grad.shape == (0, 16) and (weight.grad == 0).all()


def test_changing_the_weight_before_backward_is_noticed() -> None:
    hidden, weight, targets, _ = head_case()
    logp, _ = linear_logprob(hidden, weight, targets)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logp.sum().backward()


def test_autocast_changes_nothing() -> None:
    case = head_case(torch.float32, "bias")
    outside = run(linear_logprob, case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run(linear_logprob, case)
    assert all(torch.equal(inside[name], value) for name, value in outside.items())


def test_wrong_target() -> None:
    hidden, weight, targets, _ = head_case()
    targets[5] = -1
    with pytest.raises(ValueError, match=r"targets_T\[5\] is -1, expected 0 to 100"):
        linear_logprob(hidden, weight, targets)
