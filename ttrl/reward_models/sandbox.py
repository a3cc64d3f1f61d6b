"""Run Python programs that a model wrote, each in a locked process of its own.

`ttrl.reward_models.locked` is that process, and says what holds it.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

from ttrl.reward_models.locked import CALLS, CANNOT
from ttrl.types import UserError

START_S = 60.0
"""Libraries are loaded before the process is locked, on a busy machine for many seconds."""
SHOWN = 2000
"""Characters of a program's output that are kept; one that writes more is ended."""
READY = b"ready\n"


def run_python(code: str, seconds: float, memory_mb: int) -> str:
    """Run a program, and return what it wrote; its last line says what went wrong, if anything.

    Args:
        code: the program, hostile.
        seconds: after which it is ended.
        memory_mb: MiB of memory, at most.

    Raises:
        UserError: if this machine cannot lock a process. Then nothing was run.
    """
    refuse_unlocked()
    script = Path(__file__).with_name("locked.py")
    with subprocess.Popen(
        [sys.executable, "-I", script, str(seconds), str(memory_mb)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"OMP_NUM_THREADS": "1", "MPMATH_NOGMPY": "1", "SYMPY_GROUND_TYPES": "python"},
        cwd="/",
        start_new_session=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(code.encode("utf-8", "replace"))
            process.stdin.close()
            pipe = process.stdout.fileno()
            begun, _ = _read(pipe, START_S, len(READY))
            if begun != READY:
                process.kill()
                raise _not_locked(process.wait())
            written, late = _read(pipe, seconds, SHOWN)
        finally:
            process.kill()
    text = written.decode("utf-8", "replace")
    return f"{text}\nTimeoutError: ended after {seconds:g} s" if late else text


def refuse_unlocked() -> None:
    """Raise a UserError on a machine whose kernel we do not know how to lock a process with."""
    if sys.platform != "linux" or os.uname().machine not in CALLS:
        raise UserError(
            "reward_model.run_code = true: programs that a model wrote are run on Linux on x86-64 "
            "or ARM64 only, where the kernel can keep them from files and network; set "
            "reward_model.run_code=false"
        )


def _read(pipe: int, seconds: float, most: int) -> tuple[bytes, bool]:
    """Read up to ``most`` bytes; also say whether time was up before the end."""
    until, found = time.monotonic() + seconds, b""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while len(found) < most:
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            return found, True
        part = os.read(pipe, most - len(found))
        if not part:
            break
        found += part
    return found, False


def _not_locked(status: int) -> UserError:
    why = "seccomp was refused" if status == CANNOT else f"it ended with status {status}"
    return UserError(
        f"reward_model.run_code = true: the process for programs that a model wrote cannot be "
        f"locked here ({why}), so nothing was run; allow seccomp filters, or set "
        "reward_model.run_code=false"
    )
