"""Runs the scenarios in a process of their own, and writes down what was seen.

python rehearse.py FOLDER OUTPUT LIBRARY   on the pretended GPU, see `gpu_library`
python rehearse.py FOLDER OUTPUT           on the CPU, for comparison

OUTPUT.json holds facts by scenario, OUTPUT.safetensors tensors by SCENARIO/NAME.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def main(folder: Path, output: Path, library: str | None) -> None:
    if library is not None:
        switch_on(library)
    import scenarios
    from safetensors.torch import save_file

    chosen = scenarios.BOTH | (scenarios.ON_GPU_ONLY if library is not None else {})
    facts: dict[str, Any] = {}
    tensors = {}
    scenarios.set_up()
    for name, scenario in chosen.items():
        begun = time.process_time()
        try:
            facts[name], found = scenario(folder)
            tensors |= {f"{name}/{key}": tensor.contiguous() for key, tensor in found.items()}
        except Exception:  # the test that needs it shows it
            facts[name] = {"error": traceback.format_exc()}
        facts[name]["seconds"] = time.process_time() - begun
    if library is not None:
        import pretended_cuda
        import probes

        facts["counted"], facts["reached"] = pretended_cuda.counted, sorted(probes.reached)
    save_file(tensors, output.with_suffix(".safetensors"))
    output.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")


def switch_on(library: str) -> None:
    """From here on there is a GPU, and it is noted what is asked of it."""
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)  # before torch
    import pretended_gpu
    import probes
    import varlen

    pretended_gpu.switch_on()
    varlen.put_in()
    probes.put_in()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
