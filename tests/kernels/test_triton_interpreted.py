"""The Triton rows in Triton's interpreter, in a process of their own; and which backend is chosen.

By hand: TRITON_INTERPRET=1 python -m pytest tests/kernels/test_triton_rows.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from python_process import run_python
from ttrl_kernels import rows

HERE = Path(__file__).parent
FILES = ("test_triton_rows.py", "test_linear_policy_loss.py", "test_policy_loss_traps.py")
# The rows by themselves, and those tests of the host loop that tell one backend from another.
CHOSEN = (
    "test_triton_rows or test_every_option or (test_every_head and (entropy or gmpo_all))"
    " or test_nan_on_a_live_token or test_repeated_runs"
)


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="this is the interpreted process")
def test_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: the rows know CUDA devices and the CPU, and interpreted kernels take that."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    command = (
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(str(HERE / name) for name in FILES),
        "-k",
        CHOSEN,
    )
    run = run_python(*command)
    output = run.stdout + run.stderr
    assert run.returncode == 0, output
    assert "passed" in output and "skipped" not in output, output


# --- which backend


@pytest.fixture
def triton_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets what the probe for Triton says."""
    rows.chosen_backend.cache_clear()
    yield lambda state: monkeypatch.setitem(rows._STATES, "triton", lambda: state)
    rows.chosen_backend.cache_clear()


def test_auto_takes_triton_on_cuda_but_not_in_float64(triton_state: Callable[[str], None]) -> None:
    triton_state("available")
    assert rows.chosen_backend("cuda", torch.float32) == "triton"
    assert rows.chosen_backend("cuda", torch.bfloat16) == "triton"
    assert rows.chosen_backend("cuda", torch.float64) == "torch"
    assert rows.chosen_backend("cpu", torch.float32) != "triton"


def test_auto_says_why_it_did_not_take_triton(
    triton_state: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    triton_state("broken on Tuesdays")
    with caplog.at_level("INFO", "ttrl_kernels.rows"):
        assert rows.chosen_backend("cuda", torch.float32) == "torch"
    assert "torch; triton: broken on Tuesdays" in caplog.text


def test_triton_by_name_runs_or_raises(triton_state: Callable[[str], None]) -> None:
    triton_state("PyTorch sees no CUDA device")
    with pytest.raises(ValueError, match="'triton', which cannot run here: PyTorch sees no CUDA"):
        rows.resolve_backend("triton", torch.zeros(1, 1))


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="there it is available")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there it is available")
def test_why_triton_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    assert rows.backends()["triton"] == "PyTorch sees no CUDA device"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "triton is not installed" in rows.backends()["triton"]


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="there it can")
def test_the_kernels_cannot_read_the_memory_of_the_cpu() -> None:
    pytest.importorskip("triton")
    from ttrl_kernels.rows import triton

    with pytest.raises(ValueError, match="logits are on cpu, expected a CUDA device"):
        triton.row_stats(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), torch.ones(1), None)


def test_the_kernels_are_imported_when_used() -> None:
    code = "import sys, ttrl_kernels; print('ttrl_kernels.rows.triton' in sys.modules)"
    run = run_python("-c", code)
    assert (run.returncode, run.stdout.strip()) == (0, "False"), run.stderr
