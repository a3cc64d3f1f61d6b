"""The C++ rows against the float64 ones, row by row, and how a backend is chosen or refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import head_case
from tolerances import FP32_ULP, assert_no_worse
from ttrl_kernels import backends, chosen_backend, linear_logprob, rows
from ttrl_kernels.rows import native, reference
from ttrl_kernels.rows.interface import RowBackend, RowGrads, RowStats

INF, NAN = math.inf, math.nan
BLOCK = 2048  # as in rows.cpp
VOCABULARIES = (1, 2, 33, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 905)
STORED = (torch.float32, torch.bfloat16)

built = pytest.mark.skipif(native.missing is not None, reason=str(native.missing))


def case(
    count: int, vocabulary: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, RowGrads]:
    """Logits with a spread of 2.5, targets, temperatures, wanted gradients."""
    g = torch.Generator().manual_seed(seed)
    logits = (2.5 * torch.randn(count, vocabulary, generator=g)).to(dtype)
    targets = torch.randint(vocabulary, (count,), generator=g)
    temperature = 0.5 + torch.rand(count, generator=g)
    return logits, targets, temperature, RowGrads(*torch.randn(2, count, generator=g))


def both(
    backend: RowBackend,
    logits: torch.Tensor,
    targets: torch.Tensor,
    temperature: torch.Tensor,
    softcap: float | None,
    grads: RowGrads,
    kept: torch.Tensor | None = None,
) -> tuple[RowStats, torch.Tensor]:
    """Statistics of all rows and gradients of the kept ones; the given logits stay as they are."""
    stats = backend.row_stats(logits, targets, temperature, softcap)
    kept = torch.arange(len(logits)) if kept is None else kept
    gradient = backend.row_grad_(
        logits.clone(),
        kept,
        targets[kept],
        temperature[kept],
        softcap,
        stats.at(kept),
        grads.at(kept),
        logits.dtype,
    )
    return stats, gradient


def wide(*tensors: torch.Tensor | None) -> list[Any]:
    return [None if x is None else x.double() for x in tensors]


@built
@pytest.mark.parametrize("entropy", [False, True], ids=["logp", "entropy"])
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_against_the_float64_rows(
    vocabulary: int, stored: torch.dtype, softcap: float | None, entropy: bool
) -> None:
    logits, targets, temperature, grads = case(3, vocabulary, stored)
    grads = grads if entropy else RowGrads(grads.logp, None)
    ours = both(native, logits, targets, temperature, softcap, grads)
    wide_logits, wide_temperature = wide(logits, temperature)
    truth = both(
        reference, wide_logits, targets, wide_temperature, softcap, RowGrads(*wide(*grads))
    )
    plain = both(reference, logits.float(), targets, temperature, softcap, grads)
    scale = max(1.0, math.log(vocabulary))
    for name in ("logp", "entropy"):
        values = [getattr(stats, name) for stats, _ in (ours, truth, plain)]
        assert_no_worse(f"{name}_T", torch.float32, *values, scale)
    lse = [stats.row_max.double() + stats.log_sum for stats, _ in (ours, truth, plain)]
    assert_no_worse("logp_T", torch.float32, *lse, scale)
    if stored == torch.float32:
        assert_no_worse("dlogits", torch.float32, ours[1], truth[1], plain[1])
    else:  # rounded once: half a step of each entry's own size
        floor = 8 * FP32_ULP * truth[1].abs().max()
        assert ((ours[1] - truth[1]).abs() <= truth[1].abs() * 2.0**-8 + floor).all()


@built
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_exponentials_over_their_whole_range(stored: torch.dtype) -> None:
    """Two logits, 0 and -d: p = e^-d/(1 + e^-d), down to where it is 0."""
    d = torch.linspace(0, 100, 4001).to(stored).float()
    logits = torch.stack([torch.zeros_like(d), -d], dim=1).to(stored)
    ones = torch.ones(len(d))
    grads = RowGrads(-ones, None)
    targets = torch.zeros(len(d), dtype=torch.int64)
    _, gradient = both(native, logits, targets, ones, None, grads)
    p = torch.sigmoid(-d.double())
    error = (gradient[:, 1].double() - p).abs() / p
    normal = d < 87
    assert error[normal].max() < (1e-6 if stored == torch.float32 else 2.0**-8)
    assert (gradient[~normal, 1] <= 2e-38).all() and gradient[-1, 1] == 0


@built
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize(
    "values",
    [
        [(slice(None), -INF)],
        [(slice(0, 3 * BLOCK), -INF)],
        [(slice(5, None), -INF)],
        [(7, NAN)],
        [(2 * BLOCK + 1, NAN), (slice(0, BLOCK), -INF)],
        [(7, INF)],
        [(slice(0, BLOCK), -INF), (2 * BLOCK, INF)],
    ],
    ids=str,
)
def test_infinities_and_nan_as_in_the_reference(
    values: list[tuple[int | slice, float]], stored: torch.dtype, softcap: float | None
) -> None:
    logits, targets, temperature, grads = case(1, 3 * BLOCK + 905, stored)
    for where, value in values:
        logits[0, where] = value
    ours = both(native, logits, targets, temperature, softcap, grads)
    truth = both(reference, logits.float(), targets, temperature, softcap, grads)
    for name in ("log_sum", "logp", "entropy"):
        a, b = getattr(ours[0], name), getattr(truth[0], name)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)
    near = {"rtol": 1e-4 if stored == torch.float32 else 2.0**-7, "atol": 1e-7}
    torch.testing.assert_close(ours[1].float(), truth[1].float(), equal_nan=True, **near)


@built
def test_a_nan_with_every_bit_set_is_rounded_to_a_nan() -> None:
    logits, targets, temperature, _ = case(1, 50, torch.bfloat16)
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    _, gradient = both(native, logits, targets, temperature, None, RowGrads(nan, None))
    assert gradient.isnan().all()


@built
def test_only_the_kept_rows_in_their_order() -> None:
    logits, targets, temperature, grads = case(6, 77)
    _, every = both(native, logits, targets, temperature, None, grads)
    kept = torch.tensor([0, 4, 2])  # row 1 is a hole that row 4 fills
    _, some = both(native, logits, targets, temperature, None, grads, kept)
    assert some.shape == (3, 77) and torch.equal(some, every[kept])


@built
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_threads_and_neighbours_change_no_bit(stored: torch.dtype) -> None:
    logits, targets, temperature, grads = case(9, 3 * BLOCK + 5, stored)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(both(native, logits, targets, temperature, 4.0, grads))
    finally:
        torch.set_num_threads(threads)
    alone = both(native, logits[8:], targets[8:], temperature[8:], 4.0, grads.at(torch.tensor([8])))
    for stats, gradient in results:
        assert torch.equal(torch.stack(stats), torch.stack(results[0][0]))
        assert torch.equal(gradient, results[0][1])
        assert torch.equal(gradient[8:], alone[1])


@built
def test_a_gradient_is_written_over_the_logits() -> None:
    logits, targets, temperature, grads = case(4, 50)
    stats = native.row_stats(logits, targets, temperature, None)
    out = native.row_grad_(
        logits, torch.arange(4), targets, temperature, None, stats, grads, torch.float32
    )
    assert out.data_ptr() == logits.data_ptr()


# --- choosing


def test_auto_is_native_on_the_cpu_where_it_is_built(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger=rows.__name__)
    chosen_backend.cache_clear()
    expected = "torch" if native.missing else "native"
    assert chosen_backend("cpu") == chosen_backend("cpu", torch.bfloat16) == expected
    assert chosen_backend("cpu", torch.float64) == "torch"
    assert f"row backend for torch.float32 on cpu: {expected}" in caplog.text


def test_a_missing_library_is_reported_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "missing", "not built: no cmake found")
    chosen_backend.cache_clear()
    try:
        assert backends()["native"] == "not built: no cmake found"
        assert chosen_backend("cpu") == "torch"
        hidden, weight, targets, _ = head_case(torch.float32)
        with pytest.raises(ValueError, match=r"backend is 'native'.*not built: no cmake found"):
            linear_logprob(hidden, weight, targets, backend="native")
    finally:
        chosen_backend.cache_clear()


def test_why_it_is_missing_comes_from_the_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "_rows.so")
    monkeypatch.setattr(native, "WHY_NOT_BUILT", tmp_path / "_rows.txt")
    assert native._load().startswith("not built; to build it: TTRL_BUILD_EXT=1 pip")
    (tmp_path / "_rows.txt").write_text("not built: no cmake found\n")
    assert native._load().startswith("not built: no cmake found; to build it:")
    (tmp_path / "_rows.so").write_text("not a library")
    assert "_rows.so does not load with torch" in native._load()


@built
def test_float64_is_refused() -> None:
    hidden, weight, targets, _ = head_case()
    with pytest.raises(ValueError, match=r"logits are torch\.float64 on cpu, expected"):
        linear_logprob(hidden, weight, targets, backend="native")
