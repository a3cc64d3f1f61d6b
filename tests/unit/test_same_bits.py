"""What `scripts/same_bits.py` calls a difference."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("same_bits", SCRIPTS / "same_bits.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(folder: Path, weight: float = 1.0, token: int = 5) -> Path:
    """A run's folder, as far as it is compared."""
    for name, tensor in (
        ("model/model", torch.tensor([weight, 2.0], dtype=torch.bfloat16)),
        ("rollouts/step_00001", torch.tensor([token], dtype=torch.int32)),
    ):
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True)
        save_file({"x": tensor}, path)
    return folder


def test_runs_of_the_same_bits_do_not_differ(script: ModuleType, tmp_path: Path) -> None:
    assert script.difference(made(tmp_path / "a"), made(tmp_path / "b")) == ""


def test_a_last_bit_and_a_token_are_differences(script: ModuleType, tmp_path: Path) -> None:
    same = made(tmp_path / "same")
    bit = made(tmp_path / "bit", weight=1.0078125)  # the next bfloat16
    assert script.difference(same, bit).startswith("1 of 2 tensors differ, model/")
    token = made(tmp_path / "token", token=6)
    assert script.difference(same, token).startswith("1 of 2 tensors differ, rollouts/")


def test_what_one_run_lacks_is_a_difference(script: ModuleType, tmp_path: Path) -> None:
    whole, part = made(tmp_path / "whole"), made(tmp_path / "part")
    (part / "rollouts" / "step_00001.safetensors").unlink()
    assert "is in one of them only" in script.difference(whole, part)
