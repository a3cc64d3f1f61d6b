"""The real DeepSpeed, on ranks of its own: each number of them is started once."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from python_process import run_python
from safetensors.torch import load_file
from zero3_cases import Seen, prepare

from ttrl.learner.zero3 import require_deepspeed
from ttrl.types import UserError


@pytest.fixture(scope="session")
def zero3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and samples of all cases; skips where there is no DeepSpeed."""
    try:
        require_deepspeed()
    except UserError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("zero3")
    prepare(folder)
    return folder


@pytest.fixture(scope="session")
def seen_by(zero3_folder: Path) -> Callable[[int], Seen]:
    """``seen_by(2)`` is what two ranks have computed; skips where there is no DeepSpeed."""

    @cache
    def seen(ranks: int) -> Seen:
        output = zero3_folder / f"ranks_{ranks}"
        script = Path(__file__).with_name("zero3_facts.py")
        done = run_python(str(script), str(zero3_folder), str(output), ranks=ranks)
        assert done.returncode == 0, done.stderr[-4000:]
        facts = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
        return Seen(facts, load_file(output.with_suffix(".safetensors")))

    return seen
