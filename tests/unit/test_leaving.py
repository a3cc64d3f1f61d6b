"""How a rank ends that has met an error: at once, and without waiting for the others."""

from __future__ import annotations

import os
import subprocess
import time

import pytest
from python_process import run_python

from ttrl.rollout.pool import RolloutPool, closed_at_the_end
from ttrl.system.launch import keep_segments_whole
from ttrl.system.ranks import Ranks

SCRIPT = """
import atexit, sys, time
from ttrl import cli
from ttrl.types import UserError

atexit.register(time.sleep, 90)  # as vLLM's goodbye, which waits for the other ranks
def fail():
    raise {error}
cli.app = fail
cli.main()
"""


def run(error: str, monkeypatch: pytest.MonkeyPatch) -> subprocess.CompletedProcess[str]:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    return run_python("-c", SCRIPT.format(error=error))


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("UserError('no such thing')", 2, "ttrl: error: no such thing\n"),
        ("RuntimeError('a bug')", 1, "RuntimeError: a bug\n"),
    ],
)
def test_a_rank_leaves_at_once(
    error: str, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.perf_counter()
    done = run(error, monkeypatch)
    assert time.perf_counter() - begun < 60
    assert done.returncode == code
    assert done.stderr.endswith(said)


class Engine:
    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("count", "failed", "closed"), [
    (1, True, True), (1, False, True), (2, True, False), (2, False, True),
])  # fmt: skip
def test_an_engine_is_closed_unless_other_ranks_would_wait(
    count: int, failed: bool, closed: bool
) -> None:
    engine = Engine()
    try:
        with closed_at_the_end(RolloutPool(engine), Ranks(0, count)):  # type: ignore[arg-type]
            if failed:
                raise KeyError
    except KeyError:
        pass
    assert engine.closed == closed


@pytest.mark.parametrize(
    ("set_before", "asked"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, None),
    ],
)
def test_torch_is_asked_to_grow_its_segments_unless_the_user_says_more(
    set_before: dict[str, str], asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", dict(set_before))
    keep_segments_whole()
    assert os.environ.get("PYTORCH_ALLOC_CONF") == asked


def test_it_is_asked_before_torch_is_imported() -> None:
    """Then it cannot be too late, whenever torch reads it."""
    script = (
        "import os, sys\nfrom ttrl import cli\n"
        "cli.app = lambda: print('torch' in sys.modules, os.environ['PYTORCH_ALLOC_CONF'])\n"
        "cli.main()"
    )
    assert run_python("-c", script).stdout == "False expandable_segments:True\n"
