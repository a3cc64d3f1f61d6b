"""The real vLLM, in processes of its own: it changes torch for whoever imports it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from python_process import run_python

from ttrl.rollout.engines.vllm_contract import require_vllm
from ttrl.types import UserError


@pytest.fixture(scope="session")
def vllm_version() -> str:
    """Skips what needs vLLM where there is none."""
    try:
        return require_vllm()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def facts(vllm_version: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What ``facts.py`` has seen."""
    return facts_of("facts", tmp_path_factory)


@pytest.fixture(scope="session")
def runs(vllm_version: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What ``runs_facts.py`` has seen."""
    return facts_of("runs_facts", tmp_path_factory)


@pytest.fixture(scope="session")
def separate(vllm_version: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What ``separate_facts.py`` has seen."""
    return facts_of("separate_facts", tmp_path_factory)


@pytest.fixture(scope="session")
def ranks_facts(vllm_version: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What ``ranks_facts.py`` has seen on each of two ranks."""
    pytest.importorskip("deepspeed", reason="needs the extra zero3")
    folder = tmp_path_factory.mktemp("ranks")
    run_script("ranks_facts.py", folder, ranks=2)
    return [json.loads((folder / f"rank_{i}.json").read_text()) for i in range(2)]


def facts_of(script: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a script of this folder has seen, which one process writes down as JSON."""
    output = tmp_path_factory.mktemp(script) / "facts.json"
    run_script(f"{script}.py", output)
    return json.loads(output.read_text(encoding="utf-8"))


def run_script(name: str, output: Path, ranks: int | None = None) -> None:
    """Run one of this folder's to its good end."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling how tokens are ranked takes seconds
        done = run_python(str(Path(__file__).with_name(name)), str(output), ranks=ranks)
    assert done.returncode == 0, done.stderr[-4000:]
