"""`linear_policy_loss` against the float64 oracle, and what it promises besides the numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from cases import (
    BACKENDS,
    DTYPES,
    HEADS,
    LOG_RATIOS,
    OPTIONS,
    as_float64,
    loss_case,
    run_loss,
)
from oracle import compare
from tolerances import error_ratio
from ttrl_kernels import PolicyLoss, chunks, linear_policy_loss
from ttrl_kernels.loss_math import policy_loss_reference

if TYPE_CHECKING:
    from conftest import Recorder


@pytest.mark.parametrize("backend, dtype", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_against_the_oracle(
    options: str, backend: str, dtype: torch.dtype, small_chunks: None
) -> None:
    ours = compare(loss_case(dtype, "all", options), dtype, backend=backend)
    assert ours["hidden"].dtype == ours["weight"].dtype == ours["bias"].dtype == dtype


@pytest.mark.parametrize("backend, dtype", BACKENDS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("options", ["clip", "entropy", "sequence_all", "gmpo_all"])
def test_every_head_against_the_oracle(
    head: str, options: str, backend: str, dtype: torch.dtype, small_chunks: None
) -> None:
    compare(loss_case(dtype, head, options, seed=1), dtype, backend=backend)


CLIPS = ["clip", "dual_clip", "cispo", "gmpo", "dppo_tv", "dppo_kl", "off_policy_mask"]


@pytest.mark.parametrize("options", [*CLIPS, "sequence_all"])
def test_clipped_tokens_are_those_of_the_oracle(options: str) -> None:
    hidden, weight, targets, keywords = loss_case(options=options)
    ours = linear_policy_loss(hidden, weight, targets, **keywords).clipped_T
    truth = policy_loss_reference(hidden, weight, targets, **keywords).clipped_T
    assert ours.dtype == torch.bool and ours.tolist() == truth.tolist()
    assert ours.any() and not ours.all()


@pytest.mark.parametrize("shape", [(1, 16, 101), (6, 1, 1), (5, 7, 2), (64, 33, 257)], ids=str)
@pytest.mark.parametrize("options", ["entropy", "sequence_all", "gmpo_all"])
def test_odd_shapes(shape: tuple[int, int, int], options: str) -> None:
    compare(loss_case(torch.float32, "bias", options, seed=3, shape=shape), torch.float32)


def test_a_vocabulary_of_one_has_no_gradient() -> None:
    hidden, weight, targets, keywords = loss_case(options="none", shape=(6, 4, 1))
    result = linear_policy_loss(hidden, weight, targets, **keywords)
    result.loss.backward()
    assert result.logp_T.tolist() == [0] * 6 and result.entropy_T.tolist() == [0] * 6
    assert (hidden.grad == 0).all() and (weight.grad == 0).all()


@pytest.mark.parametrize("incoming", [1.0, 1 / 3])
@pytest.mark.parametrize("rows", [30, 100, 300])
@pytest.mark.parametrize("options", ["clip", "entropy", "kl_k3"])
def test_mean_error_in_bfloat16_is_that_of_plain_pytorch(
    options: str, rows: int, incoming: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ten, three or one chunks: with three or fewer dW is accumulated in bfloat16 on the CPU.

    An incoming gradient other than 1 multiplies what the CPU has rounded before.
    """
    monkeypatch.setattr(chunks, "LOGITS_BYTES", rows * 1000 * 2)
    case = loss_case(torch.bfloat16, "bias", options, seed=5, shape=(300, 64, 1000))
    ours, plain = (run_loss(f, case, incoming) for f in (linear_policy_loss, policy_loss_reference))
    truth = run_loss(policy_loss_reference, as_float64(*case), incoming)
    for name in truth:
        assert error_ratio(ours[name], truth[name], plain[name]) < 1.1, name


# --- work that is skipped


def test_only_live_rows_and_never_more_than_a_chunk(recorder: Recorder, small_chunks: None) -> None:
    hidden, weight, targets, keywords = loss_case(torch.float32, options="entropy")
    live = int((keywords["token_weights_T"] != 0).sum())
    result = linear_policy_loss(hidden, weight, targets, **keywords)
    assert live < len(targets)
    assert result.live_rows == result.gradient_rows == live
    assert sum(recorder.stats_rows) == sum(recorder.grad_rows) == live
    assert max(recorder.stats_rows) == 7 and recorder.stats_rows[-1] == live % 7


SKIPPING = {
    # The log-ratios at which a token of an advantage of 1 has no gradient.
    "clip": (0.6, 2.0),
    "sequence_clip": (0.6, 2.0),
    "gmpo": (0.6, 2.0),
    "sapo": (),
    "off_policy_mask": (),
}


@pytest.mark.parametrize("options", SKIPPING)
def test_rows_without_gradient_skip_the_gradient_work(
    options: str, recorder: Recorder, small_chunks: None
) -> None:
    hidden, weight, targets, keywords = loss_case(torch.float32, options=options)
    live = keywords["token_weights_T"] != 0
    # Advantages of whole sequences: number 1 is average, the others are better than that.
    average = keywords["sequence_ids_T"] == 1
    keywords["advantages_T"] = torch.where(average, 0.0, 1.0)
    result = linear_policy_loss(hidden, weight, targets, **keywords)
    ratios = torch.tensor(LOG_RATIOS)[keywords["sequence_ids_T"]]
    idle = live & (average | torch.isin(ratios, torch.tensor(SKIPPING[options])))
    assert 0 < int(idle.sum()) < result.live_rows
    assert result.gradient_rows == result.live_rows - int(idle.sum()) == sum(recorder.grad_rows)


def test_rows_without_an_advantage_share_chunks(recorder: Recorder, small_chunks: None) -> None:
    """Few rows that teach, all over the batch, add to dW in as few chunks as hold them."""
    hidden, weight, targets, keywords = loss_case(torch.float32, options="none")
    live = (keywords["token_weights_T"] != 0).nonzero().squeeze(1)
    keywords["advantages_T"] = torch.zeros(len(targets)).index_fill(0, live[::4], 1.0)
    result = linear_policy_loss(hidden, weight, targets, **keywords)
    assert result.gradient_rows == len(live[::4]) == 9
    assert len(recorder.stats_rows) == 5 and recorder.grad_rows == [7, 2]


def test_a_sequence_that_is_masked_skips_the_gradient_work(
    recorder: Recorder, small_chunks: None
) -> None:
    hidden, weight, targets, keywords = loss_case(torch.float32, options="off_policy_mask")
    left_behind = keywords["sequence_ids_T"] == 0  # its log-ratios are -0.6
    live = keywords["token_weights_T"] != 0
    keywords["advantages_T"] = torch.full((len(targets),), -1.0)
    result = linear_policy_loss(hidden, weight, targets, **keywords)
    assert result.clipped_T.tolist() == (live & left_behind).tolist()
    assert result.clipped_T.any()
    assert result.gradient_rows == sum(recorder.grad_rows) == int((live & ~left_behind).sum())


def test_a_penalty_has_a_gradient_where_the_advantage_has_none(recorder: Recorder) -> None:
    hidden, weight, targets, keywords = loss_case(torch.float32, options="kl_cov")
    keywords["advantages_T"] = torch.zeros(len(targets))
    live = keywords["token_weights_T"] != 0
    penalized = live & (keywords["ratio_penalty_T"] != 0)
    result = linear_policy_loss(hidden, weight, targets, **keywords)
    assert 0 < result.gradient_rows == sum(recorder.grad_rows) == int(penalized.sum()) < live.sum()


@pytest.mark.parametrize("options", ["clip", "sequence_clip"])
def test_compaction_changes_no_bit(
    options: str, monkeypatch: pytest.MonkeyPatch, small_chunks: None
) -> None:
    # How BLAS sums depends on how many rows there are. These two do not: the first goes row by
    # row, the second sums multiples of 2^-30, which float64 does exactly in any order.
    def matmul_by_rows(
        a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor, bias: torch.Tensor | None = None
    ) -> None:
        for i, row in enumerate(a):
            out[i] = row @ b

    def add_matmul_by_rows(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> None:
        out += (a.t()[:, :, None] * b[:, None, :] * 2**30).round().sum(0) / 2**30

    monkeypatch.setattr(chunks, "_matmul", matmul_by_rows)
    monkeypatch.setattr(chunks, "_add_matmul", add_matmul_by_rows)
    case = loss_case(options=options)
    case[3]["advantages_T"] = torch.where(case[3]["sequence_ids_T"] == 1, 0.0, 1.0)
    skipped = run_loss(linear_policy_loss, case)
    monkeypatch.setattr(chunks, "nonzero_rows", lambda grads: torch.arange(len(grads.logp)))
    computed = run_loss(linear_policy_loss, case)
    assert skipped["weight"].abs().max() > 0
    for name in skipped:
        assert torch.equal(skipped[name], computed[name]), name


@pytest.mark.parametrize("kept", ["", "0", "1", "01", "10", "0101", "111000", "000111", "0110100"])
def test_compaction_keeps_the_rows_and_overwrites_none(kept: str) -> None:
    kept = torch.tensor([int(k) for k in kept], dtype=torch.bool)
    kept_K = kept.nonzero().squeeze(1)
    rows_K = chunks.compaction(kept_K, len(kept))
    assert torch.equal(rows_K.sort().values, kept_K)
    stays = rows_K == torch.arange(len(rows_K))
    assert (stays | (rows_K >= len(rows_K))).all()


@pytest.mark.parametrize("options", ["clip", "sequence_clip"])
def test_no_gradient_work_without_need(options: str, recorder: Recorder) -> None:
    hidden, weight, targets, keywords = loss_case(torch.float32, options=options)
    with torch.no_grad():
        result = linear_policy_loss(hidden, weight, targets, **keywords)
    assert not result.loss.requires_grad and result.gradient_rows == 0
    hidden, weight = hidden.detach(), weight.detach()
    result = linear_policy_loss(hidden, weight, targets, **keywords)
    assert not result.loss.requires_grad and recorder.grad_rows == []


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen_inputs_cost_no_matmul(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = loss_case(options="none")
    both = run_loss(linear_policy_loss, case)
    matmuls = []
    for name in ("_matmul", "_add_matmul"):
        original = getattr(chunks, name)
        monkeypatch.setattr(
            chunks,
            name,
            lambda *a, n=name, f=original, **k: (matmuls.append(n), f(*a, **k))[1],
        )
    {"hidden": case[0], "weight": case[1]}[frozen].requires_grad_(False)
    one = run_loss(linear_policy_loss, case)
    other = "weight" if frozen == "hidden" else "hidden"
    assert frozen not in one and torch.equal(one[other], both[other])
    # The logits, and the gradient of what is not frozen.
    assert sorted(matmuls) == (["_add_matmul", "_matmul"] if other == "weight" else ["_matmul"] * 2)


# --- autograd


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grad_output_scales_before_rounding(dtype: torch.dtype) -> None:
    compare(loss_case(dtype, "bias", "entropy", seed=2), dtype, scale=1 / 3)


def test_backward_twice_accumulates() -> None:
    hidden, weight, targets, keywords = loss_case()
    loss = linear_policy_loss(hidden, weight, targets, **keywords).loss
    loss.backward(torch.tensor(3.0, dtype=loss.dtype), retain_graph=True)
    first = hidden.grad.clone(), weight.grad.clone()
    loss.backward(torch.tensor(3.0, dtype=loss.dtype))
    assert torch.equal(hidden.grad, 2 * first[0]) and torch.equal(weight.grad, 2 * first[1])
    assert first[0].abs().max() > 0


def test_only_the_loss_carries_a_gradient() -> None:
    hidden, weight, targets, keywords = loss_case()
    result = linear_policy_loss(hidden, weight, targets, **keywords)
    assert result.loss.requires_grad
    metrics = (result.logp_T, result.entropy_T, result.clipped_T, result.kl_T)
    assert not any(x.requires_grad for x in metrics)


def test_tied_embedding_gets_both_gradients() -> None:
    _, weight, targets, keywords = loss_case(options="none")
    ids = targets.clamp(min=0).roll(1)

    def gradient(loss: Callable[..., PolicyLoss]) -> torch.Tensor:
        return torch.autograd.grad(loss(weight[ids], weight, targets, **keywords).loss, weight)[0]

    torch.testing.assert_close(gradient(linear_policy_loss), gradient(policy_loss_reference))


def test_inputs_are_left_alone() -> None:
    case = loss_case(head="all", options="sequence_all")
    hidden, weight, targets, keywords = case
    tensors = [hidden, weight, targets, *(x for x in keywords.values() if torch.is_tensor(x))]
    before = [x.detach().clone() for x in tensors]
    run_loss(linear_policy_loss, case)
    for x, old in zip(tensors, before, strict=True):
        assert torch.equal(x.nan_to_num(), old.nan_to_num())


def test_non_contiguous_inputs() -> None:
    hidden, weight, targets, keywords = loss_case(head="all", options="entropy")
    expected = run_loss(linear_policy_loss, (hidden, weight, targets, keywords))

    def strided(x: Any) -> Any:
        if not torch.is_tensor(x):
            return x
        wide = torch.stack([x.detach(), x.detach()], dim=-1)[..., 0]
        return wide.requires_grad_(x.requires_grad)

    case = strided(hidden), strided(weight), strided(targets), {}
    case[3].update({k: strided(v) for k, v in keywords.items()})
    assert not case[0].is_contiguous() and not case[3]["bias"].is_contiguous()
    for name, value in run_loss(linear_policy_loss, case).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-13, atol=1e-13)


def test_autocast_changes_nothing() -> None:
    case = loss_case(torch.float32, options="sequence_all")
    outside = run_loss(linear_policy_loss, case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run_loss(linear_policy_loss, case)
    for name, value in outside.items():
        assert torch.equal(inside[name], value), name
