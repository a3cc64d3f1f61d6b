"""The real vLLM, in processes of its own: it changes torch for whoever imports it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from wide_base import save_wide_base

from ttrl.rollout.vllm_engine import require_vllm
from ttrl.types import UserError

HERE = Path(__file__).parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([*(p for p in sys.path if p), str(HERE)]),
    "CUDA_VISIBLE_DEVICES": "",
}


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
    done = run_python(str(HERE / "facts.py"), str(wide_base), str(output))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(output.read_text(encoding="utf-8"))


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Another Python, without a GPU."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
