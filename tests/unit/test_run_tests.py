"""The exit status of scripts/run_tests.sh: 0 where every check passed, and only there."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "run_tests.sh"


@pytest.mark.parametrize(
    ("failing", "status"),
    [
        ("nothing", 0),
        ("ruff check .", 1),
        ("codespell", 1),
        ("mypy", 1),
        ("python scripts/check_cuda_installs.py", 1),
        ("python -m pytest", 1),
    ],
)
def test_status_is_zero_where_every_check_passed(tmp_path: Path, failing: str, status: int) -> None:
    """Each command is a stand-in that prints its name and fails where it is told to."""
    binaries, scripts = tmp_path / ".venv/bin", tmp_path / "scripts"
    binaries.mkdir(parents=True)
    scripts.mkdir()
    (scripts / "setup.sh").write_text("")
    (scripts / SCRIPT.name).write_text(SCRIPT.read_text())
    stand_in = '#!/bin/sh\nsaid="${0##*/} $*"\necho "ran $said"\n'
    for name in ("ruff", "codespell", "mypy", "python"):
        command = binaries / name
        command.write_text(f'{stand_in}case "$said " in "{failing} "*) exit 1;; esac\n')
        command.chmod(0o755)
    done = subprocess.run(
        ["bash", scripts / SCRIPT.name], capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    if status == 0:
        for said in ("mypy", "python scripts/check_cuda_installs.py", "python -m pytest -n"):
            assert f"ran {said}" in done.stdout
