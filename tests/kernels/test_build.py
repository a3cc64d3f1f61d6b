"""Building the C++ rows: what is in a wheel, and what happens where they cannot be built."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ttrl_kernels.rows import native

ROOT = Path(__file__).parents[2]


def build(tmp_path: Path, mode: str) -> subprocess.CompletedProcess[str]:
    """`setup.py bdist_wheel` of this checkout, with everything it writes in a temporary folder."""
    command = [sys.executable, "setup.py", "egg_info", "--egg-base", str(tmp_path)]
    command += ["build", "--build-base", str(tmp_path / "build")]
    command += ["bdist_wheel", "--dist-dir", str(tmp_path), "--bdist-dir", str(tmp_path / "wheel")]
    environment = {**os.environ, "TTRL_BUILD_EXT": mode}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def wheel(tmp_path: Path) -> tuple[str, dict[str, bytes]]:
    (found,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(found) as archive:
        names = {n: archive.read(n) for n in archive.namelist() if "ttrl_kernels/_rows" in n}
    return found.name, names


@pytest.mark.skipif(native.missing is not None, reason=str(native.missing))
def test_a_wheel_holds_the_library_for_any_python(tmp_path: Path) -> None:
    done = build(tmp_path, "1")
    assert done.returncode == 0, done.stderr
    name, files = wheel(tmp_path)
    assert "-py3-none-" in name and not name.endswith("-any.whl")
    assert list(files) == ["ttrl_kernels/_rows.so"]
    assert files["ttrl_kernels/_rows.so"][:4] == b"\x7fELF" or sys.platform != "linux"


def test_0_leaves_it_out(tmp_path: Path) -> None:
    done = build(tmp_path, "0")
    assert done.returncode == 0, done.stderr
    name, files = wheel(tmp_path)
    assert name.endswith("-py3-none-any.whl")
    assert files == {"ttrl_kernels/_rows.txt": b"not built: TTRL_BUILD_EXT was 0\n"}


@pytest.fixture
def without_cmake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """setup.py finds no program at all, neither on PATH nor beside its Python."""
    hide = "import shutil; shutil.which = lambda *a, **k: None\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("without_cmake")
def test_1_fails_where_cmake_is_missing(tmp_path: Path) -> None:
    done = build(tmp_path, "1")
    assert done.returncode != 0 and not list(tmp_path.glob("*.whl"))
    assert "TTRL_BUILD_EXT=1, but the C++ rows do not build: no cmake found" in done.stderr


@pytest.mark.usefixtures("without_cmake")
def test_auto_goes_on_where_cmake_is_missing_and_says_so(tmp_path: Path) -> None:
    done = build(tmp_path, "auto")
    assert done.returncode == 0, done.stderr
    assert "C++ rows not built, PyTorch does their work: no cmake found" in done.stdout
    _, files = wheel(tmp_path)
    assert files == {"ttrl_kernels/_rows.txt": b"not built: no cmake found: pip install cmake\n"}


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    done = build(tmp_path, "yes")
    assert done.returncode != 0 and "TTRL_BUILD_EXT is 'yes', expected auto, 0 or 1" in done.stderr
