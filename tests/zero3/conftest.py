"""The real DeepSpeed, on ranks of its own: each number of them is started once."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file
from zero3_cases import Seen, output_of, prepare

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
        output = output_of("zero3_facts", zero3_folder, ranks)
        facts = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
        return Seen(facts, load_file(output.with_suffix(".safetensors")))

    return seen
