"""A GPU that torch does not see is said, before anything is loaded; it is no run on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

from ttrl.commands.evaluate import evaluate
from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.system import gpus
from ttrl.system.launch import gpu_count
from ttrl.trainer import train
from ttrl.types import UserError

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12040). Please update it from the "
    "URL: http://nowhere.invalid"
)


@pytest.fixture(autouse=True)
def unseen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """torch for CUDA 13, a driver for CUDA 12.4, and so no GPU for torch; the PATH's folder."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def init() -> None:
        raise RuntimeError(TOO_OLD)

    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(gpus, "NODES", ())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    nvidia_smi(tmp_path, "echo 550.54.15; echo 550.54.15")
    return tmp_path


def nvidia_smi(folder: Path, does: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)


def test_a_driver_that_is_too_old() -> None:
    with pytest.raises(UserError) as caught:
        gpus.refuse_unseen_gpus()
    assert str(caught.value) == (
        f"this machine has a GPU (driver: 550.54.15), and torch {torch.__version__} sees none: The "
        "NVIDIA driver on your system is too old (found version 12040). CUDA 13.0 needs driver 580 "
        "or newer. Update the driver, or install a torch for an older CUDA; to use the CPU all the "
        'same, set CUDA_VISIBLE_DEVICES=""'
    )


def test_a_driver_that_is_new_enough_is_not_to_be_updated(
    unseen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(unseen, "echo 580.65.06")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    problem = gpus.unseen_gpus()
    assert problem is not None
    assert "Update the driver" not in problem
    assert "CUDA_VISIBLE_DEVICES is '9'. See what nvidia-smi says" in problem


@pytest.mark.parametrize("does", ["exit 9", "echo 'Failed to initialize NVML'; exit 18"])
def test_a_driver_that_does_not_work(unseen: Path, does: str) -> None:
    nvidia_smi(unseen, does)
    said = "nvidia-smi ended with 9" if does == "exit 9" else "Failed to initialize NVML"
    assert f"has a GPU (driver: {said})" in str(gpus.unseen_gpus())


def test_a_container_without_nvidia_smi(unseen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (unseen / "nvidia-smi").unlink()
    assert gpus.unseen_gpus() is None  # no sign of a GPU
    (unseen / "nvidia0").touch()
    monkeypatch.setattr(gpus, "NODES", (str(unseen / "nvidia[0-9]*"),))
    assert "(driver: no nvidia-smi to ask)" in str(gpus.unseen_gpus())


def test_a_machine_without_gpus_that_has_their_tools(unseen: Path) -> None:
    nvidia_smi(unseen, "echo 'No devices were found'; exit 6")
    assert gpus.unseen_gpus() is None


@pytest.mark.parametrize("value", ["", "-1", " "])
def test_gpus_that_the_user_hides(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert gpus.unseen_gpus() is None


def test_gpus_that_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpus.unseen_gpus() is None


def test_a_torch_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert gpus.unseen_gpus() is None


def test_nothing_is_loaded_or_started(tmp_path: Path) -> None:
    settings = load_settings("tiny-arithmetic", overrides=["model.path=/nowhere"])
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match="this machine has a GPU"):
        train(settings, folder, Display(Console(quiet=True)))
    with pytest.raises(UserError, match="this machine has a GPU"):
        evaluate("/nowhere", ["arithmetic:train"], overrides=["evaluation.samples=2"])
    with pytest.raises(UserError, match="this machine has a GPU"):
        gpu_count()  # before ranks are started, of which there would be one
    assert not folder.path.exists()


def test_the_device_is_the_gpu_that_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus.device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpus.device() == torch.device("cuda")
