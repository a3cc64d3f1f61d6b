"""Compiling ``pretended_gpu.cpp``; imports torch, so it is not for the process that loads it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch


def build(folder: Path) -> Path:
    """The library, made in ``folder`` with the machine's C++ compiler."""
    torch_folder = Path(torch.__file__).parent
    lib, library = torch_folder / "lib", folder / "pretended_gpu.so"
    include = [f"-I{torch_folder / 'include'}"]
    link = [f"-L{lib}", f"-Wl,-rpath,{lib}", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"]
    source = Path(__file__).with_name("pretended_gpu.cpp")
    command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", "-w", *include, str(source)]
    done = subprocess.run(
        [*command, "-o", str(library), *link], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return library
