"""Python processes that begin with torch and the like imported: forks of one that did it once.

Importing takes 7 to 14 s of a core, taking it all down half of one, and the tests start hundreds of
processes. `install` makes ``subprocess.Popen`` fork ``python -m MODULE`` and ``python SCRIPT``
instead of starting them, for the modules and folders listed below, in this process and in those
that it starts so. In all else they are what was asked for: children of whoever started them, with
the arguments, environment, folder, descriptors and session that were given, and ttrl imported from
where they find it. One that ends well, and is no rank, leaves the taking down of its interpreter to
the kernel.

What is not forked, and so starts as it does for a user: ``python -c``, whatever a shell starts, and
everything in tests that use the fixture ``cold_starts``.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import importlib.util
import inspect
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from fcntl import F_DUPFD_CLOEXEC, fcntl
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
MODULES = (
    "ttrl.cli",
    "ttrl.rollout.engines.engine_process",
    "ttrl.run.report_process",
    "stub_engine",
    "torch.distributed.run",
)
"""Modules that are run in a fork."""
SCRIPTS = ("bench", "tests/e2e", "tests/vllm", "tests/zero3")
"""Folders whose scripts are."""
IMPORTS = (
    "torch.distributed.launcher.api",
    "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend",
    "transformers.models.auto.modeling_auto",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen2.tokenization_qwen2",
    "rich.console",
    "typer",
    "math_verify",
    # DeepSpeed imports it for any optimizer, and it imports torch's compiler.
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "peft",
    "ttrl.trainer",
)
"""What a fork has imported: nothing that starts a thread."""
OURS = ("ttrl", "ttrl_kernels")
"""What of it is forgotten where a fork finds another ttrl."""
READ_BY_IMPORTS = ("HF_", "LD_", "MALLOC_", "TRITON_")
"""Variables of such names are read at the start, or by an import: with others nothing is forked."""
SPARE = 256
"""The first descriptor that is in nobody's way."""


class Request(NamedTuple):
    """A process to be made."""

    parent: int
    command: list[str]
    environment: dict[str, str]
    folder: str
    descriptors: list[int]
    """Which ones it is to have; those that it becomes come along, in the same order."""
    new_session: bool


# ---------------------------------------------------------------------------------------------
# Whoever starts processes


class WarmPopen(subprocess.Popen[Any]):
    """A ``subprocess.Popen`` that has its process forked by the nursery where it can."""

    nursery: Nursery | None = None

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any,
                       pass_fds: Any, cwd: Any, env: Any, *more: Any) -> None:  # fmt: skip
        nursery = type(self).nursery
        _, _, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *others = more
        *_, new_session, group = others
        environment = dict(os.environ if env is None else env)
        asked = preexec_fn is None and executable is None and close_fds and not shell
        if nursery is None or not asked or group >= 0 or not nursery.can_fork(args, environment):
            super()._execute_child(  # type: ignore[misc]
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more
            )
            return
        given = [own if own >= 0 else i for i, own in enumerate((p2cread, c2pwrite, errwrite))]
        request = Request(
            os.getpid(),
            [os.fspath(a) for a in args],
            environment,
            os.path.abspath(cwd or os.getcwd()),
            [0, 1, 2, *pass_fds],
            bool(new_session),
        )
        self.pid = nursery.fork(request, [*given, *pass_fds])
        self._child_created = True
        self._close_pipe_fds(  # type: ignore[attr-defined]
            p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite
        )


class Nursery:
    """A process that has imported everything, and is forked."""

    def __init__(self, wire: socket.socket, environment: dict[str, str]) -> None:
        self._wire = wire
        self._environment = environment
        self._lock = threading.Lock()

    def can_fork(self, command: Sequence[Any], environment: dict[str, str]) -> bool:
        """Whether a fork would be what this command starts."""
        if not isinstance(command, (list, tuple)) or os.fspath(command[0]) != sys.executable:
            return False
        _, program, _ = parsed([os.fspath(a) for a in command])
        if not program:
            return False
        changed = dict(environment.items() ^ self._environment.items())
        return not any(name.startswith(READ_BY_IMPORTS) for name in changed)

    def fork(self, request: Request, descriptors: Sequence[int]) -> int:
        """The id of a new child of this process."""
        with self._lock:
            adopt_orphans(True)  # the nursery's child ends at once, and leaves us the grandchild
            try:
                message = json.dumps(request).encode()
                socket.send_fds(self._wire, [message], descriptors)
                return int(self._wire.recv(64))
            finally:
                adopt_orphans(False)


def install() -> None:
    """Start the nursery of this process, and have ``subprocess.Popen`` use it."""
    ours, theirs = pair()
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # else it starts threads
    environment.pop("OMP_NUM_THREADS", None)
    with theirs:
        subprocess.Popen(  # the spaces are room for the command lines of its forks
            [sys.executable, __file__, str(theirs.fileno()), " " * 4000],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    WarmPopen.nursery = Nursery(ours, environment)
    subprocess.Popen = WarmPopen  # type: ignore[misc]


def adopt_orphans(wanted: bool) -> None:
    """Become the parent of all descendants whose parents end, or no longer."""
    set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER in <sys/prctl.h>
    ctypes.CDLL(None).prctl(set_child_subreaper, int(wanted))


# ---------------------------------------------------------------------------------------------
# The nursery


def parsed(command: Sequence[str]) -> tuple[set[str], str, list[str]]:
    """Options of Python, the module or script, and sys.argv; no program where it is not listed."""
    options, rest = set(), list(command[1:])
    while rest and rest[0] in ("-P", "-u"):
        options.add(rest.pop(0))
    if rest[:1] == ["-m"] and rest[1] in MODULES:
        return options | {"-m"}, rest[1], rest[1:]
    if rest and rest[0].endswith(".py"):
        parents = Path(rest[0]).absolute().parents
        if any(ROOT / folder in parents for folder in SCRIPTS):
            return options, rest[0], rest
    return options, "", []


def serve(wire: int, imported_with: dict[str, str]) -> Request | None:
    """Fork for each request, which is returned in the fork; None when nobody is left to ask."""
    while True:
        with socket.socket(fileno=os.dup(wire)) as asked:
            message, descriptors, _, _ = socket.recv_fds(asked, 2**18, 250)
        if not message:
            return None
        middle = os.fork()
        if middle == 0:
            if os.fork() != 0:
                os._exit(0)  # so that the requester adopts the other one
            request = Request(*json.loads(message))
            if request.new_session:
                os.setsid()
            # What it starts itself is forked from another one, since it will have threads by then.
            ours, theirs = (s.detach() for s in pair())
            if os.fork() == 0:
                (wire,) = keep(theirs)
                continue
            wire, ours, *descriptors = keep(wire, ours, *descriptors)
            WarmPopen.nursery = Nursery(socket.socket(fileno=ours), imported_with)
            become(request, wire, descriptors)
            return request
        os.waitpid(middle, 0)
        for descriptor in descriptors:
            os.close(descriptor)


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a wire that keeps messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def keep(*descriptors: int) -> list[int]:
    """Close all others, and lay these where they are in nobody's way."""
    kept = [fcntl(descriptor, F_DUPFD_CLOEXEC, SPARE + 256) for descriptor in descriptors]
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.closerange(3, SPARE + 256)
    final = [fcntl(descriptor, F_DUPFD_CLOEXEC, SPARE) for descriptor in kept]
    for descriptor in kept:
        os.close(descriptor)
    return final


def become(request: Request, wire: int, descriptors: Iterable[int]) -> None:
    """Be the process that was asked for, up to its first line of Python."""
    for descriptor, wanted in zip(descriptors, request.descriptors, strict=True):
        os.dup2(descriptor, wanted)
        os.close(descriptor)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    write_command_line(request.command)
    until = time.monotonic() + 10
    while os.getppid() != request.parent:  # the one in the middle has not ended
        if time.monotonic() > until:
            os._exit(1)  # the requester has
        time.sleep(0.001)
    os.write(wire, str(os.getpid()).encode())
    os.close(wire)


def write_command_line(command: Iterable[str]) -> None:
    """Show it to those who look into /proc, as tests do."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    line = b"".join(a.encode() + b"\0" for a in command)[: end - start]
    ctypes.memmove(start, line.ljust(end - start, b"\0"), end - start)


def run(request: Request, library: Sequence[str]) -> None:
    """Run the program as Python does."""
    options, program, sys.argv[:] = parsed(request.command)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    first = os.getcwd() if "-m" in options else str(Path(program).absolute().parent)
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.path[:] = [*([] if "-P" in options else [first]), *paths, *library]
    ours = {name: m for name, m in sys.modules.items() if name.partition(".")[0] in OURS}
    for name in ours:
        del sys.modules[name]
    found = importlib.util.find_spec("ttrl")
    if found is not None and found.origin == ours["ttrl"].__file__:
        sys.modules.update(ours)
    if "OMP_NUM_THREADS" in os.environ:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if "-u" in options and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(write_through=True)
    try:
        if "-m" in options:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    if "RANK" not in os.environ:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as Python does
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def main(wire: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends when its last requester has
    subprocess.Popen = WarmPopen  # type: ignore[misc]  # for those who import it by name, too
    environment = dict(os.environ)
    seen = {str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    library = [path for path in sys.path if path not in seen]
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    gc.disable()  # there is no garbage yet
    for name in IMPORTS:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    names = [name for name in names if name != "jemalloc_bg_thd"]  # pyarrow's, which starts again
    assert len(names) == 1, f"threads do not survive a fork: {names}"
    inspect.getmodule(inspect.currentframe())  # it looks at every module's file, and remembers
    gc.enable()
    gc.freeze()
    request = serve(wire, environment)
    if request is not None:
        run(request, library)


if __name__ == "__main__":
    main(int(sys.argv[1]))
