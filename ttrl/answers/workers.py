"""The processes that do computer algebra, and how they are asked."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ttrl.answers.symbolic import Question
from ttrl.settings import AnswerSettings
from ttrl.types import UserError

START_S = 60.0
"""A worker loads sympy before it is ready, on a busy machine for many seconds."""
ATTEMPTS = 3
"""A question whose worker dies is put to another one, so often in all."""

UNDECIDED = object()
"""The reply to a question that no worker answered within the deadline."""


class _Died(Exception):
    """The worker ended by itself."""


class _CannotStart(Exception):
    """The worker ended, or was ended, before it was ready."""


class _TooLate(Exception):
    """No reply came within the time allowed."""


class Worker:
    """One process of computer algebra; for one thread at a time."""

    def __init__(self, settings: AnswerSettings) -> None:
        """Start the process."""
        script = Path(__file__).with_name("worker.py")
        self.process = subprocess.Popen(
            # -I: nothing but the standard library and installed packages; no PYTHON... variables.
            [sys.executable, "-I", script, str(settings.memory_mb), str(settings.deadline_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            cwd="/",
            start_new_session=True,  # Ctrl-C is for us alone
        )
        self.unread = b""

    def wait(self) -> None:
        """Wait until the process is ready.

        Raises:
            _CannotStart: with what it said about that.
        """
        try:
            self._line(START_S)
        except (_Died, _TooLate) as error:
            self.kill()
            assert self.process.stderr is not None
            complaint = self.process.stderr.read().decode(errors="replace").strip()
            raise _CannotStart(complaint.rpartition("\n")[2] or error) from None

    def ask(self, question: str, deadline_s: float) -> dict[str, Any]:
        """Return the reply to a question, a line of JSON.

        Raises:
            _Died, _TooLate: then this worker is of no further use.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(question.encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise _Died from error
        reply: dict[str, Any] = json.loads(self._line(deadline_s))
        return reply

    def _line(self, seconds: float) -> bytes:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        until = time.monotonic() + seconds
        while b"\n" not in self.unread:
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                raise _TooLate(f"no word from it in {seconds:g} s")
            received = os.read(descriptor, 65536)
            if not received:
                raise _Died("it ended without a word")
            self.unread += received
        line, _, self.unread = self.unread.partition(b"\n")
        return line

    def kill(self) -> None:
        """End the process at once; for any thread."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End the process and leave nothing of it; for the thread that asks it."""
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what was still to be written goes nowhere
                pipe.close()


def _environment() -> dict[str, str]:
    """Return what the interpreter needs to find its libraries, and our settings: no secrets."""
    return {
        "SYMPY_GROUND_TYPES": "python",  # gmpy2 cannot be interrupted, and aborts without memory
        "MPMATH_NOGMPY": "1",
        "OMP_NUM_THREADS": "1",
        **{name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
    }


class Workers:
    """Up to ``settings.workers`` processes, started when first needed; for any thread."""

    def __init__(self, settings: AnswerSettings) -> None:
        """Take the settings; nothing is started before it is needed."""
        self.settings = settings
        self.count = settings.workers or os.cpu_count() or 1
        self._failure: UserError | None = None
        self._closed = False
        self._start_over()
        _EVERY.add(self)

    def _start_over(self) -> None:
        """Forget processes and threads; in a fork, whose parent has the ones there were."""
        self._lock = threading.Lock()
        self._alive: set[Worker] = set()
        self._idle: list[Worker] = []
        self._permits = threading.Semaphore(self.count)
        self._threads: ThreadPoolExecutor | None = None
        # Also ends them when this object is forgotten, and at the interpreter's exit.
        self._finalizer = weakref.finalize(self, _kill, self._alive, os.getpid())

    def ask(self, questions: Sequence[Question]) -> list[str | object | None]:
        """Return each question's key; None if it has none, or UNDECIDED.

        Raises:
            UserError: if no process can be started.
            RuntimeError: after `close`.
        """
        if len(questions) < 2:
            return [self._ask(question) for question in questions]
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.count, thread_name_prefix="algebra")
        return list(self._threads.map(self._ask, questions))

    def close(self) -> None:
        """End all processes at once, also those that are computing."""
        with self._lock:
            self._closed = True
            self._idle.clear()
            threads = self._threads
        self._finalizer()
        if threads is not None:
            threads.shutdown(cancel_futures=True)

    def _ask(self, question: Question) -> str | object | None:
        line = json.dumps({"sides": question.sides, "relation": question.relation})
        with self._permits:
            for _ in range(ATTEMPTS):
                worker = self._take()
                try:
                    reply = worker.ask(line, self.settings.deadline_s)
                except _Died:
                    self._discard(worker)
                    continue
                except _TooLate:
                    self._discard(worker)
                    return UNDECIDED
                if reply.get("undecided"):
                    self._discard(worker)  # out of memory; what is left of it is not to be trusted
                    return UNDECIDED
                with self._lock:
                    self._idle.append(worker)
                key: str | None = reply["key"]
                return key
        return UNDECIDED

    def _take(self) -> Worker:
        for _ in range(ATTEMPTS):
            with self._lock:
                self._check()
                if self._idle:
                    return self._idle.pop()
                worker = Worker(self.settings)
                self._alive.add(worker)
            try:
                worker.wait()
            except _CannotStart as error:
                self._discard(worker)
                reason = error
            else:
                return worker
        with self._lock:
            self._check()  # perhaps it was `close` that ended them
            # Remembered, since to try again for each answer would take hours.
            self._failure = UserError(
                "the process that compares answers by computer algebra does not start: "
                f"{reason}. Is math-verify installed (pip install 'math-verify[antlr4-13-2]')? "
                "Or set answers.symbolic = false"
            )
            raise self._failure

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError("the grader is closed")
        if self._failure is not None:
            raise self._failure

    def _discard(self, worker: Worker) -> None:
        with self._lock:
            self._alive.discard(worker)
        worker.close()


_EVERY: weakref.WeakSet[Workers] = weakref.WeakSet()


def _after_fork() -> None:
    for workers in list(_EVERY):
        workers._start_over()


os.register_at_fork(after_in_child=_after_fork)


def _kill(workers: set[Worker], owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork of our process must not end what it does not own
    while workers:
        workers.pop().kill()
