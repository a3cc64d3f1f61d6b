"""The real DeepSpeed, on ranks of its own: each number of them is started once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))  # tiny_models, wherever pytest starts

from zero3_cases import Seen, prepare

from ttrl.policy.zero3 import require_deepspeed
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
        done = torchrun(ranks, str(script), str(zero3_folder), str(output))
        assert done.returncode == 0, done.stderr[-4000:]
        facts = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
        return Seen(facts, load_file(output.with_suffix(".safetensors")))

    return seen


def torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments on so many ranks, without a GPU."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc_per_node={ranks}", *arguments),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
