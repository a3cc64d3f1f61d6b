"""Other processes: those of an engine, and all that the kernel knows of."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Any


def processes_of(engine: Any) -> list[subprocess.Popen[bytes]]:
    """Those that a `RemoteEngine` has started."""
    return [p.process for p in engine._processes]


def children_of(parent: int, command: str = "") -> set[int]:
    """Processes that ``parent`` has, those it has not waited for included, if their command line
    contains ``command``; a dead one has none."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it may just have ended
            state, ppid, *_ = stat.read_text().rpartition(")")[2].split()
            line = stat.with_name("cmdline").read_bytes()
            if int(ppid) == parent and (state == "Z" or command.encode() in line):
                found.add(int(stat.parent.name))
    return found


def command_of(pid: int) -> str:
    """The command line of a living process, and nothing of one that has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    return ""


def cpu_seconds(pid: int) -> float:
    """How long a process has computed: the same on a busy machine as on an idle one."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_files(pid: int) -> list[str]:
    """What its file descriptors are."""
    links = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # that of this very listing
            links.append(os.readlink(descriptor))
    return links
