"""Builds the C++ rows with CMake; everything else about the package is in pyproject.toml.

TTRL_BUILD_EXT=auto  build them if the machine can; else say why not, and go on without (default)
TTRL_BUILD_EXT=1     build them or fail
TTRL_BUILD_EXT=0     leave them out

The library holds PyTorch operators and no Python, so one wheel serves every Python version. It is
built against the installed torch: use ``pip install --no-build-isolation``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
MODE = os.environ.get("TTRL_BUILD_EXT", "auto")
if MODE not in ("auto", "0", "1"):
    raise SystemExit(f"TTRL_BUILD_EXT is {MODE!r}, expected auto, 0 or 1")


class CannotBuild(Exception):
    """Why the library cannot be built here."""


class CMakeBuild(build_ext):
    """Builds ``ttrl_kernels/_rows.so``, or leaves ``_rows.txt`` with the reason in its place."""

    def run(self) -> None:
        """Into the sources for an editable install, else into what becomes the wheel."""
        root = ROOT / "kernels" if self.inplace else Path(self.build_lib).resolve()
        library = root / "ttrl_kernels" / "_rows.so"
        why_not = library.with_suffix(".txt")
        library.parent.mkdir(parents=True, exist_ok=True)
        library.unlink(missing_ok=True)
        why_not.unlink(missing_ok=True)
        try:
            if MODE == "0":
                raise CannotBuild("TTRL_BUILD_EXT was 0")
            _build(library, Path(self.build_temp).resolve())
        except CannotBuild as error:
            if MODE == "1":
                raise SystemExit(
                    f"TTRL_BUILD_EXT=1, but the C++ rows do not build: {error}"
                ) from None
            print(f"ttrl: C++ rows not built, PyTorch does their work: {error}")
            why_not.write_text(f"not built: {error}\n", encoding="utf-8")


class AnyPythonWheel(bdist_wheel):
    """Tagged for the platform where it holds the library, but for any Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """py3-none-PLATFORM, or py3-none-any without the library."""
        return "py3", "none", "any" if MODE == "0" else super().get_tag()[2]


def _build(library: Path, folder: Path) -> None:
    cmake, ninja = _tool("cmake"), _tool("ninja")
    if cmake is None:
        raise CannotBuild("no cmake found: pip install cmake")
    shutil.rmtree(folder, ignore_errors=True)  # a build takes seconds, a stale cache much longer
    folder.mkdir(parents=True)
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), f"-DTORCH_DIR={_torch_folder()}"]
    if ninja is not None:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    for command in (configure, [cmake, "--build", str(folder)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotBuild(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    shutil.copy(folder / library.name, library)


def _tool(name: str) -> str | None:
    # The environment's own first: its scripts are not on PATH unless it was activated.
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def _torch_folder() -> str:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise CannotBuild(
            "torch is not installed where this is built; install it first, and use "
            "pip install --no-build-isolation"
        )
    return str(Path(spec.origin).parent)


setup(
    ext_modules=[Extension("ttrl_kernels._rows", ["kernels/csrc/rows.cpp"])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel},
)
