"""Run a Python program that may do nothing but compute and write to its output.

Started by `ttrl.reward_models.sandbox` as a script, with nothing of ttrl on its path. It reads the
program from standard input, locks itself, says "ready", and runs it. What locks it is the kernel
(seccomp): of all system calls the few below are left, for memory, output and the end. So the
program opens no file, no connection and no process, whatever code it finds to call; libraries that
it may use are imported before. Memory and processor time are limited, too.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from collections.abc import Sequence

CALLS = {
    "x86_64": (
        0xC000003E,
        # read write mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn mremap
        # madvise exit futex clock_gettime exit_group
        (0, 1, 9, 10, 11, 12, 13, 14, 15, 25, 28, 60, 202, 228, 231),
    ),
    "aarch64": (
        0xC00000B7,
        (63, 64, 222, 226, 215, 214, 134, 135, 139, 216, 233, 93, 98, 113, 94),
    ),
}
"""Machine -> its number for the kernel, and the system calls that are left."""
LIBRARIES = (
    *("cmath", "collections", "decimal", "fractions", "functools", "itertools", "math"),
    *("random", "re", "statistics", "string"),
)
SYMPY = """
from sympy import *
x = symbols("x")
solve(x**2 - 4, x), solve([x + 1], [x]), simplify(sin(x) ** 2 + cos(x) ** 2), integrate(x, x)
limit(sin(x) / x, x, 0), Matrix([[1, 2], [3, 4]]).inv(), nsolve(x - 1, x, 0), factorint(12), str(x)
"""
"""Makes sympy load, while it may, the modules that it would load when they are needed."""
CANNOT = 97
"""Exit status of a machine that cannot lock."""

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
"""What the filter answers: yes; no, as EPERM; and the end of the process."""
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2


def rules(machine: str) -> bytes:
    """Return the filter of system calls in the kernel's language (classic BPF)."""
    architecture, calls = CALLS[machine]
    steps: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4),  # the machine of the call: numbers of another one mean other calls
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the number of the call
    ]
    for call in calls:
        steps += [(_EQUAL, 0, 1, call), (_RETURN, 0, 0, _ALLOW)]
    steps.append((_RETURN, 0, 0, _REFUSE))
    return b"".join(struct.pack("HBBI", *step) for step in steps)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))


def lock(machine: str) -> None:
    """Give up all other system calls, for good.

    Raises:
        OSError: if the kernel does not do that.
    """
    library = ctypes.CDLL(None, use_errno=True)
    code = rules(machine)
    held = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(held))
    for arguments in (
        (_NO_NEW_PRIVILEGES, 1, 0, 0, 0),
        (_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0),
    ):
        if library.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def is_locked() -> bool:
    """Try what must not work: whether opening a file and starting a process are refused."""
    for forbidden in (lambda: os.open("/", os.O_RDONLY), os.fork, lambda: os.kill(1, 0)):
        try:
            if forbidden() == 0:  # a child, if that went through
                os._exit(CANNOT)
        except PermissionError:
            continue
        return False
    return True


def main(arguments: Sequence[str]) -> None:
    """Read the program, lock, run it, and say what went wrong in its last line."""
    seconds, memory_mb = float(arguments[0]), int(arguments[1])
    text = sys.stdin.read()
    for name in LIBRARIES:
        __import__(name)
    if "sympy" in text:
        exec(SYMPY, {})
    os.closerange(3, 4096)
    for what, limit in (
        (resource.RLIMIT_AS, memory_mb * 2**20),
        (resource.RLIMIT_CPU, int(sum(os.times()[:2]) + seconds) + 1),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))
    try:
        lock(os.uname().machine)
    except (OSError, KeyError):
        os._exit(CANNOT)
    if not is_locked():
        os._exit(CANNOT)
    os.write(1, b"ready\n")
    try:
        exec(compile(text, "<check>", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        print(f"{type(error).__name__}: {error}")
    try:
        sys.stdout.flush()
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
