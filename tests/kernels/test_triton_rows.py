"""The Triton row kernels: on a GPU, or in Triton's interpreter (TRITON_INTERPRET=1).

Elsewhere `test_triton_interpreted.py` runs this file in the interpreter, in a process of its own,
since Triton has to know before a kernel is imported. A test named for another project is a bug that
was found there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tolerances import FP32_ULP, assert_no_worse
from ttrl_kernels import rows
from ttrl_kernels.rows import reference
from ttrl_kernels.rows.interface import RowGrads

if not rows.backends()["triton"].startswith("available"):
    pytest.skip("neither a GPU nor TRITON_INTERPRET=1", allow_module_level=True)


from triton_cases import (
    BF16_STEP,
    BLOCK,
    DEVICE,
    INF,
    NAN,
    assert_equal_rows,
    case,
    double,
    gradient,
    random_grads,
)
from ttrl_kernels.rows import triton

# --- against the float64 rows, by the rule of tolerances.py

VOCABULARIES = (1, 33, BLOCK, BLOCK + 1, 2 * BLOCK + 905)
DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_statistics(vocabulary: int, softcap: float | None, dtype: torch.dtype) -> None:
    logits, targets, temperature = case(3, vocabulary, dtype)
    ours = triton.row_stats(logits, targets, temperature, softcap)
    truth = reference.row_stats(logits.double(), targets, temperature.double(), softcap)
    plain = reference.row_stats(logits.float(), targets, temperature, softcap)
    for name in ("logp", "entropy"):
        values = (getattr(x, name) for x in (ours, truth, plain))
        assert_no_worse(f"{name}_T", torch.float32, *values, scale=max(1.0, math.log(vocabulary)))
    lse = (x.row_max.double() + x.log_sum.double() for x in (ours, truth, plain))
    assert_no_worse("logp_T", torch.float32, *lse)
    torch.testing.assert_close(ours.row_max.double(), truth.row_max, rtol=4 * FP32_ULP, atol=1e-6)


@pytest.mark.parametrize("entropy", [False, True], ids=["logp", "entropy"])
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_gradient(vocabulary: int, softcap: float | None, entropy: bool) -> None:
    logits, targets, temperature = case(3, vocabulary)
    grads = random_grads(3, entropy)
    ours = gradient(triton, logits, targets, temperature, softcap, grads)
    wide = double(logits, temperature)
    truth = gradient(reference, wide[0], targets, wide[1], softcap, RowGrads(*double(*grads)))
    plain = gradient(reference, logits, targets, temperature, softcap, grads)
    assert_no_worse("dlogits", torch.float32, ours, truth, plain)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("stored", DTYPES, ids=str)
def test_bfloat16_gradient_is_the_float32_one_rounded_once(
    stored: torch.dtype, vocabulary: int
) -> None:
    logits, targets, temperature = case(3, vocabulary, stored)
    grads = random_grads(3)
    arguments = (targets, temperature, 4.0, grads)
    narrow = gradient(triton, logits, *arguments, dtype=torch.bfloat16)
    wide = gradient(triton, logits.float(), *arguments)
    assert narrow.dtype == torch.bfloat16 and narrow.shape == wide.shape
    torch.testing.assert_close(narrow.float(), wide, rtol=BF16_STEP, atol=0)


@pytest.mark.parametrize("softcap", [0.5, 4.0, 30.0])
def test_softcap_is_exact_from_tiny_to_huge_logits(softcap: float) -> None:
    u = torch.logspace(-6, 4, 41, dtype=torch.float64).float()
    u = torch.cat([-u.flip(0), torch.zeros(1), u]).to(DEVICE)
    # Two columns, of which one is 0: then logp of the other and its distance to 0 tell the cap.
    logits = torch.stack([u, torch.zeros_like(u)], 1)
    targets, ones = torch.zeros(len(u), dtype=torch.int64, device=DEVICE), torch.ones_like(u)
    stats = triton.row_stats(logits, targets, ones, softcap)
    z = (stats.logp + stats.log_sum + stats.row_max).double()
    expected = softcap * torch.tanh(u.double() / softcap)
    # Two roundings of sums beside log 2 near 0, relative ones elsewhere.
    torch.testing.assert_close(z, expected, rtol=4 * FP32_ULP, atol=2 * FP32_ULP)


# --- numerical traps, each a row: what is in it, by column of a row of 2 blocks and a bit

WIDTH = 2 * BLOCK + 5


def _row(fill: float, **at: float) -> torch.Tensor:
    row = torch.full((WIDTH,), float(fill))
    for column, value in at.items():
        row[int(column[1:])] = value
    return row


TRAPS = {
    "far below zero": _row(-1e4, _7=-9990),
    "far above zero": _row(1e4, _8000=10010.0),
    "both far apart": _row(-1e4, _3=1e4),
    "rises all along": torch.arange(WIDTH) * 0.01,
    "falls all along": torch.arange(WIDTH) * -0.01,
    "all equal": _row(3.0),
    "one possible": _row(-INF, _5000=-2.0),
    "possible in the first block only": torch.cat([torch.randn(100), _row(-INF)[100:]]),
    "possible in the last block only": torch.cat([_row(-INF)[3:], torch.zeros(3)]),
    "lowest finite": _row(torch.finfo(torch.float32).min, _1=0.0, _2=1.0),
    "all lowest finite": _row(torch.finfo(torch.float32).min),
    "huge": _row(0.0, _1=1e38, _8000=3e38),
    "nothing possible": _row(-INF),
    "plus infinity": _row(0.0, _0=INF),
    "plus infinity late": _row(0.0, _8190=INF),
    "two infinities": _row(0.0, _17=INF, _8000=INF),
    "NaN first": _row(0.0, _0=NAN),
    "NaN last": torch.cat([torch.zeros(WIDTH - 1), torch.tensor([NAN])]),
    "NaN among -inf": _row(-INF, _4096=NAN),
    "all NaN": _row(NAN),
}


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("trap", TRAPS)
def test_trap(trap: str, softcap: float | None) -> None:
    logits = TRAPS[trap].to(DEVICE).expand(2, WIDTH).contiguous()
    targets = torch.tensor([1, WIDTH - 1], device=DEVICE)  # a common token, and the last column
    ones = torch.ones(2, device=DEVICE)
    ours = triton.row_stats(logits, targets, ones, softcap)
    truth = reference.row_stats(logits.double(), targets, ones.double(), softcap)
    assert_equal_rows(ours, truth)
    grads = RowGrads(torch.tensor([0.3, -2.0]).to(DEVICE), torch.tensor([1.0, 0.7]).to(DEVICE))
    result = gradient(triton, logits, targets, ones, softcap, grads)
    expected = gradient(
        reference, logits.double(), targets, ones.double(), softcap, RowGrads(*double(*grads))
    )
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=2e-6, equal_nan=True)


def test_impossible_target_is_infinitely_unlikely() -> None:
    logits, targets, temperature = case(2, 50)
    logits[0, targets[0]] = -INF
    ours = triton.row_stats(logits, targets, temperature, None)
    assert ours.logp[0] == -INF and ours.logp[1].isfinite() and ours.entropy.isfinite().all()


# --- rows by themselves


def test_a_row_does_not_depend_on_the_rows_beside_it_nor_on_the_run() -> None:
    """verl #6280: log-probs that changed with the shape of the micro-batch."""
    logits, targets, temperature = case(5, BLOCK + 77)
    grads = random_grads(5)
    arguments = (targets, temperature, 4.0)
    stats = triton.row_stats(logits, *arguments)
    result = gradient(triton, logits, *arguments, grads)
    assert torch.equal(gradient(triton, logits, *arguments, grads), result)
    for i in range(5):
        alone = triton.row_stats(logits[i : i + 1], targets[i : i + 1], temperature[i : i + 1], 4.0)
        assert [x[i].item() for x in stats] == [x.item() for x in alone]
        kept = torch.tensor([i], device=DEVICE)
        one = gradient(triton, logits, *arguments, grads.at(kept), kept)
        assert torch.equal(one[0], result[i])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kept", [[0], [4], [0, 4, 2], [3, 1, 4], [0, 1, 2, 3, 4]], ids=str)
def test_kept_rows_are_written_from_the_top(kept: list[int], dtype: torch.dtype) -> None:
    logits, targets, temperature = case(5, BLOCK + 33)
    kept = torch.tensor(kept, device=DEVICE)
    grads = random_grads(5)
    full = gradient(triton, logits, targets, temperature, None, grads, dtype=dtype)
    some = gradient(triton, logits, targets, temperature, None, grads.at(kept), kept, dtype)
    assert torch.equal(some, full[kept])


def test_the_gradient_lies_in_the_memory_of_the_logits() -> None:
    logits, targets, temperature = case(2, 90)
    before, both = logits.clone(), torch.arange(2, device=DEVICE)
    stats = triton.row_stats(logits, targets, temperature, None)
    assert torch.equal(logits, before)  # statistics only read
    out = triton.row_grad_(
        logits, both, targets, temperature, None, stats, random_grads(2), torch.bfloat16
    )
    assert out.data_ptr() == logits.data_ptr() and out.stride() == (180, 1)


def test_verl_6960_gradients_that_are_not_contiguous() -> None:
    logits, targets, temperature = case(3, 90)
    expanded = torch.tensor(0.7, device=DEVICE).expand(3)
    every_second = torch.randn(6, device=DEVICE)[::2]
    strided = gradient(triton, logits, targets, temperature, None, RowGrads(expanded, every_second))
    dense = RowGrads(expanded.contiguous(), every_second.contiguous())
    assert torch.equal(strided, gradient(triton, logits, targets, temperature, None, dense))


def test_no_rows() -> None:
    logits, targets, temperature = case(0, 7)
    assert all(x.shape == (0,) for x in triton.row_stats(logits, targets, temperature, None))
    assert gradient(triton, logits, targets, temperature, None, random_grads(0)).shape == (0, 7)
    # No row of the chunk has a gradient.
    logits, targets, temperature = case(2, 7)
    none = torch.empty(0, dtype=torch.int64, device=DEVICE)
    out = gradient(triton, logits, targets, temperature, None, random_grads(0), none)
    assert out.shape == (0, 7)


# --- other projects' bugs


def test_verl_7439_running_maximum_that_starts_at_zero() -> None:
    """All logits far below 0: e^(z−0) underflows, and log-probs were wrong without a word."""
    logits, targets, temperature = case(4, BLOCK + 10)
    low = logits * 0.25 - torch.tensor([[90.0], [200.0], [1e3], [1e4]], device=DEVICE)
    ones = torch.ones_like(temperature)
    ours = triton.row_stats(low, targets, ones, None)
    assert_equal_rows(ours, reference.row_stats(low.double(), targets, ones.double(), None))
    assert (ours.entropy > 5).all()


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("padding", [1e4, INF, NAN])
def test_verl_2899_columns_past_the_vocabulary_count(padding: float, softcap: float | None) -> None:
    logits, targets, temperature = case(3, BLOCK + 100)
    wide = torch.full((3, 2 * BLOCK), padding, device=DEVICE)
    wide[:, : BLOCK + 100] = logits
    view = wide[:, : BLOCK + 100]
    stats = triton.row_stats(view, targets, temperature, softcap)
    expected = triton.row_stats(logits, targets, temperature, softcap)
    assert all(torch.equal(a, b) for a, b in zip(stats, expected, strict=True))
    grads, kept = random_grads(3), torch.arange(3, device=DEVICE)
    arguments = (kept, targets, temperature, softcap, stats, grads, torch.float32)
    out = triton.row_grad_(view, *arguments)
    assert torch.equal(out, triton.row_grad_(logits, *arguments))
    outside = wide[:, BLOCK + 100 :]
    assert torch.equal(outside.nan_to_num(), torch.full_like(outside, padding).nan_to_num())


def test_verl_2656_log_probs_above_zero() -> None:
    """Certain tokens: logp was up to +123 and the reward collapsed."""
    logits, targets, temperature = case(4, 300)
    logits.scatter_(1, targets[:, None], torch.tensor([[20.0], [90.0], [500.0], [3e4]]).to(DEVICE))
    ours = triton.row_stats(logits, targets, temperature, None)
    assert (ours.logp <= 0).all() and (ours.logp > -1e-2).all()
    assert (ours.entropy >= 0).all()


def test_liger_1329_gradient_of_a_likely_target_cancels() -> None:
    """p − 1 of the target in bfloat16 is 0 once p > 0.998; it has to be formed in float32."""
    logits = torch.zeros(3, 200, device=DEVICE)
    logits[:, 5] = torch.tensor([8.0, 11.0, 13.0], device=DEVICE)
    targets, ones = torch.full((3,), 5, device=DEVICE), torch.ones(3, device=DEVICE)
    out = gradient(triton, logits, targets, ones, None, RowGrads(-ones, None), dtype=torch.bfloat16)
    p = torch.softmax(logits.double(), -1)[:, 5]
    assert (p[1:] > 0.995).all()
    torch.testing.assert_close(out[:, 5].double(), p - 1, rtol=2 * BF16_STEP, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_marin_8217_forward_and_backward_in_two_precisions(dtype: torch.dtype) -> None:
    """At |z| = 80 one rounding of the logits to bfloat16 puts probabilities off by a fifth.

    With one precision the probabilities of the gradient sum to 1: its entries cancel.
    """
    logits, targets, _ = case(4, 500)
    logits = (logits + torch.tensor([[20.3], [-20.3], [80.3], [-80.3]], device=DEVICE)).to(dtype)
    ones = torch.ones(4, device=DEVICE)
    stats = triton.row_stats(logits, targets, ones, None)
    rest = 1 - stats.logp.double().exp()
    out = gradient(triton, logits, targets, ones, None, RowGrads(ones, None)).double()
    step = 2e-6 if dtype == torch.float32 else BF16_STEP
    torch.testing.assert_close(out.gather(1, targets[:, None])[:, 0], rest, rtol=step, atol=2e-6)
    assert (out.sum(1).abs() < step).all()


def test_liger_1294_more_rows_than_the_second_axis_of_a_grid_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """65,535 on axes 1 and 2, 2^31 − 1 on axis 0, where the rows are."""
    grids = []

    class Kernel:
        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            grids.append(grid)
            return lambda *args, **kwargs: None

    monkeypatch.setattr(triton, "row_stats_kernel", Kernel())
    monkeypatch.setattr(triton, "row_grad_kernel", Kernel())
    logits, targets, temperature = case(70_000, 1)
    gradient(triton, logits, targets, temperature, None, random_grads(70_000))
    assert grids == [(70_000,), (70_000,)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_beyond_two_to_the_31_logits(dtype: torch.dtype, tmp_path: Path) -> None:
    """Row 3 of these starts 3·2^30 logits in: 32-bit offsets would wrap around."""
    stride = 1 << 30
    if DEVICE == "cuda":
        memory = torch.empty(3 * stride + 5, dtype=torch.float32, device=DEVICE)
    else:  # a file of holes: only what is touched takes space
        memory = torch.from_file(str(tmp_path / "holes"), shared=True, size=3 * stride + 5)
    logits, targets, temperature = case(4, 5)
    far = memory.as_strided((4, 5), (stride, 1)).copy_(logits)
    grads, kept = random_grads(4), torch.arange(4, device=DEVICE)
    stats = triton.row_stats(far, targets, temperature, None)
    expected = triton.row_stats(logits, targets, temperature, None)
    assert all(torch.equal(a, b) for a, b in zip(stats, expected, strict=True))
    arguments = (kept, targets, temperature, None, stats, grads, dtype)
    out = triton.row_grad_(far, *arguments)
    assert torch.equal(out, triton.row_grad_(logits, *arguments))


# --- what the kernels cannot read


def test_wrong_logits() -> None:
    logits, targets, temperature = case(3, 8)
    with pytest.raises(ValueError, match=r"float64, expected .* backend='torch' also does float64"):
        triton.row_stats(logits.double(), targets, temperature, None)
    with pytest.raises(ValueError, match=r"strides \(1, 3\), expected each row to be contiguous"):
        triton.row_stats(logits.t().contiguous().t(), targets, temperature, None)
    with pytest.raises(ValueError, match=r"dtype is torch.float32 for logits in torch.bfloat16"):
        gradient(
            triton,
            logits.bfloat16(),
            targets,
            temperature,
            None,
            random_grads(3),
            None,
            torch.float32,
        )
