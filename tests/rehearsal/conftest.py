"""The scenarios of `scenarios`, run once on the pretended GPU and once on the CPU, side by side."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gpu_library
import pytest
import torch
from filelock import FileLock
from python_process import run_python
from rehearsed import Both, Seen
from safetensors.torch import load_file


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """What was seen; skips where CUDA is really there, or C++ cannot be compiled."""
    if torch.backends.cuda.is_built():
        pytest.skip("this torch is built for CUDA: nothing is pretended")
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the pretended GPU with")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # whose workers have folders side by side
        folder = folder.parent
    folder /= "rehearsal"
    with FileLock(f"{folder}.lock"):  # one records, for all
        return recorded(folder)


def recorded(folder: Path) -> Both:
    """What was seen, made where it is not in the folder already."""
    import scenarios

    if not folder.exists():
        folder.mkdir()
        scenarios.prepare(folder)
    script = str(Path(__file__).with_name("rehearse.py"))

    def rehearse(name: str, *library: str) -> Seen:
        output = folder / f"{name}_seen"
        if not output.with_suffix(".json").exists():
            done = run_python(script, str(folder), str(output), *library)
            assert done.returncode == 0, done.stderr[-4000:]
        facts = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
        return Seen(facts, load_file(output.with_suffix(".safetensors")))

    with ThreadPoolExecutor(2) as pool:
        on_cpu = pool.submit(rehearse, "cpu")
        on_gpu = pool.submit(rehearse, "gpu", str(gpu_library.build(folder)))
        return Both(on_gpu.result(), on_cpu.result())
