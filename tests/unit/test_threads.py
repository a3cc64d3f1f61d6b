"""How torch's threads wait is said before torch is loaded, unless the user has said it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SAID = (
    "import ttrl, os; print({k: os.environ.get(k) for k in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')})"
)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": "5000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": None}),
    ],
)
def test_threads_spin_for_a_while_unless_the_user_has_said_how_they_wait(
    own: dict[str, str], expected: dict[str, str | None]
) -> None:
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", SAID], env=clean | own, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(expected)
