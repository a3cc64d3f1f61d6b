"""The real vLLM, in processes of its own: it changes torch for whoever imports it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from process import run_python
from wide_base import save_wide_base

from ttrl.rollout.vllm_engine import require_vllm
from ttrl.types import UserError


@pytest.fixture(scope="session")
def vllm_version() -> str:
    """Skips what needs vLLM where there is none."""
    try:
        return require_vllm()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, as vLLM can compute it on a CPU."""
    folder = tmp_path_factory.mktemp("wide_base")
    save_wide_base(folder)
    return folder


@pytest.fixture(scope="session")
def facts(vllm_version: str, wide_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What ``facts.py`` has seen."""
    output = tmp_path_factory.mktemp("facts") / "facts.json"
    done = run_python(str(Path(__file__).with_name("facts.py")), str(wide_base), str(output))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(output.read_text(encoding="utf-8"))
