"""Rollout engines in processes of their own: on other GPUs than the trainer, several at a time.

This is the trainer's side; `ttrl.rollout.engines.engine_process` is the other one. Questions are
spread by the expected length of their answers, all samples of one question on one engine. A single
engine samples what one inside this process does, bit for bit. Of several, so does each apart from
rounding: a sample's random numbers do not depend on the engine that draws it.

Weights go through shared memory, one copy for all engines. vLLM's own transfer between GPUs (NCCL)
is not used. Engines are on this machine: there is no port, so nothing to reach them by from
elsewhere.

An engine that dies, or stops to make progress, ends the call with an error that shows its last log
lines, and all engines with it. None outlives this process, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict

import torch

from ttrl.models.pretrained import load_outline
from ttrl.rollout.engines.shared_weights import SharedWeights
from ttrl.rollout.engines.wire import Message, Wire, from_question, to_completion
from ttrl.rollout.sampling import SamplingParams
from ttrl.settings import Settings
from ttrl.system.balance import balance
from ttrl.system.ranks import Ranks
from ttrl.types import Completion, Question, UserError

MODULE = "ttrl.rollout.engines.engine_process"
"""The module that a process runs."""
START_S = 1800.0
"""Seconds that a start may take: it loads from a slow disk, and compiles, with no step to count."""
LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that a launcher sets for its processes."""
LOG_LINES = 20
"""Lines of an engine's log that an error shows."""
END_S = 5.0
"""Seconds that a process whose socket has ended is given to end as well."""


class _Lost(Exception):
    """An engine died or is stuck; the message says how."""


class RemoteEngine:
    """One or more engine processes; see `ttrl.rollout.engines.base.Engine` for the protocol.

    Make it in a thread that stays: the processes end with it.
    """

    def __init__(self, settings: Settings, ranks: Ranks, *, load_weights: bool) -> None:
        """Start ``rollout.engines`` processes, each with the engine that the settings name.

        Args:
            settings: of the run.
            ranks: each has engines of its own, on the next GPUs of ``rollout.engine_gpus``.
            load_weights: False where a push comes first, so that they need not be loaded.

        Raises:
            UserError: if there are no such GPUs, there is no memory for a copy of the weights, or
                an engine does not start.
        """
        if sys.platform != "linux":
            raise UserError('rollout.placement = "separate" needs Linux')
        rollout = settings.rollout
        gpus = _visible_gpus(rollout.engine_gpus, torch.cuda.device_count(), os.environ)
        if gpus and len(gpus) != rollout.engines * ranks.count:
            raise UserError(
                f"rollout.engine_gpus = {list(rollout.engine_gpus)}: expected "
                f"{rollout.engines * ranks.count}, rollout.engines = {rollout.engines} for each "
                f"of {ranks.count} ranks"
            )
        gpus = gpus[ranks.rank * rollout.engines :]
        outline = load_outline(settings.model)
        shapes = {name: p.shape for name, p in outline.named_parameters()}
        self._stuck_after_s = rollout.stuck_after_s
        self._calls = self._version = 0
        self._weights = SharedWeights(shapes, settings.model.dtype)
        self._processes: list[_Process] = []
        # Also when this object is forgotten, and at the interpreter's exit.
        self._end = weakref.finalize(self, _end_all, self._processes, self._weights, os.getpid())
        start = {
            "do": "start",
            "settings": settings.model_dump_json(),
            "load_weights": load_weights,
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }
        try:
            for i in range(rollout.engines):
                name = f"rollout engine {i + 1} of {rollout.engines}"
                gpu = gpus[i] if gpus else None
                self._processes.append(_Process(name, gpu, self._weights, rollout.stuck_after_s))
            self._ask_all(start, START_S)
        except BaseException:
            self.close()
            raise

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace all weights of all engines, waking them if they sleep.

        Raises:
            RuntimeError: if the set is not complete; see `ttrl.rollout.engines.weights`. The
                engines then stay at the weights that they had.
        """
        self._weights.write(weights)
        self._version += 1
        index = self._weights.index
        self._ask_all({"do": "load_weights", "index": index, "version": self._version})

    def sleep(self) -> None:
        """Let the engines give back what memory they can."""
        self._ask_all({"do": "sleep"})

    def sample(
        self, questions: Sequence[Question], params: SamplingParams
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        """Yield (index of the question, its n completions), each as soon as it is complete.

        Raises:
            UserError: if a prompt leaves no room for ``max_new_tokens`` in the model's context.
        """
        # The pool has put the longest first: equal numbers of them go to each engine.
        shares = balance([1.0] * len(questions), max(1, len(self._processes)))
        asked = [(p, share) for p, share in zip(self._processes, shares, strict=False) if share]
        requests = {
            process: {
                "do": "sample",
                "questions": [from_question(questions[i]) for i in share],
                "params": asdict(params),
            }
            for process, share in asked
        }
        share_of = dict(asked)
        for process, sampled in self._ask(requests):
            i = share_of[process][sampled["question"]]
            completions = tuple(to_completion(c) for c in sampled["completions"])
            yield i, completions

    def close(self) -> None:
        """End all processes at once, whatever they do."""
        self._end()

    def _ask_all(self, request: Message, patience_s: float | None = None) -> None:
        """Have all engines do something that has no other result than to be done."""
        for _ in self._ask(dict.fromkeys(self._processes, request), patience_s):
            raise RuntimeError(f"a rollout engine answered {request['do']} with samples")

    def _ask(
        self, requests: Mapping[_Process, Message], patience_s: float | None = None
    ) -> Iterator[tuple[_Process, Message]]:
        """Ask several engines at the same time; yield what each samples, until all are done.

        Without ``patience_s``, an engine is stuck after ``rollout.stuck_after_s``.

        Raises:
            UserError: if an engine died or is stuck: then all have been ended. Or if one refused.
            RuntimeError: if an engine reports anything else, or has other weights than it should.
        """
        if not self._end.alive:
            raise RuntimeError("the rollout engines were closed")
        self._calls += 1
        call = self._calls
        waiting = set(requests)
        try:
            for process, request in requests.items():
                process.ask({"call": call, **request})
            while waiting:
                for process, message in _answers(waiting, patience_s or self._stuck_after_s):
                    if message["call"] != call:
                        continue  # the rest of a call that nobody listened to to its end
                    if "sampled" in message:
                        yield process, message["sampled"]
                    elif "failed" in message:
                        waiting.discard(process)
                        raise _error(process, *message["failed"])
                    elif "done" in message:
                        waiting.discard(process)
                        self._check_version(process, message["done"]["version"])
        except _Lost as loss:
            self.close()
            raise UserError(str(loss)) from None
        finally:  # whoever stops listening, or an engine's failure, leaves the others at work
            for process in waiting if self._end.alive else ():
                with contextlib.suppress(OSError):  # the next call will notice
                    process.wire.send({"call": call, "do": "stop"})

    def _check_version(self, process: _Process, version: int) -> None:
        if version != self._version:
            raise RuntimeError(
                f"{process.name} has the weights of push {version}, expected {self._version}"
            )


class _Process:
    """One engine process, and what is known of it."""

    def __init__(
        self, name: str, gpu: str | None, weights: SharedWeights, patience_s: float
    ) -> None:
        """Start the process; ``gpu`` is what it sees as its only one."""
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (it has no name: nothing is left of it)
        ours, theirs = socket.socketpair()
        ours.settimeout(patience_s)
        self.wire = Wire(ours)
        descriptors = (theirs.fileno(), weights.descriptor)
        with theirs:
            self.process = subprocess.Popen(
                # -P: what lies in the working directory is not imported unless it was here, too.
                [sys.executable, "-P", "-m", MODULE, *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=_environment(gpu, os.environ),
                pass_fds=descriptors,
                start_new_session=True,  # Ctrl-C is for us alone
            )
        self._doing = "started"
        self._steps = 0
        self.moved_at = time.monotonic()
        """When the process last showed that it makes progress."""

    def ask(self, request: Message) -> None:
        """Send a request; raise _Lost if the process does not take it."""
        self._doing = _DOING[request["do"]]
        self.moved_at = time.monotonic()
        try:
            self.wire.send(request)
        except TimeoutError:
            raise self.stuck() from None
        except OSError:
            raise self.died() from None

    def read(self) -> list[Message]:
        """Return what the process said; raise _Lost if it is gone."""
        try:
            messages = self.wire.read()
        except EOFError:
            raise self.died() from None
        for message in messages:
            # That a thread of it is alive says nothing about the engine; a counted step does.
            if message.get("steps") != self._steps:
                self.moved_at = time.monotonic()
            self._steps = message.get("steps", self._steps)
        return messages

    def died(self) -> _Lost:
        """Make the error that says that the process is gone."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
        code = self.process.returncode
        if code is None:
            how = "hung up"
        elif code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
            how += " (often for want of memory)" if -code == signal.SIGKILL else ""
        else:
            how = f"ended with exit code {code}"
        return self._lost(how)

    def stuck(self) -> _Lost:
        """Make the error that says that the process is stuck."""
        waited = time.monotonic() - self.moved_at
        return self._lost(
            f"made no progress for {waited:.0f} s (rollout.stuck_after_s: raise it if that can be)"
        )

    def _lost(self, how: str) -> _Lost:
        log = self._last_lines()
        return _Lost(
            f"{self.name} (process {self.process.pid}) {how} while it {self._doing}; all engines "
            f"were ended. {'Its last log lines:' if log else 'It logged nothing'}"
            + "".join(f"\n    {line}" for line in log)
        )

    def _last_lines(self) -> list[str]:
        log = self._log.fileno()
        last = os.pread(log, 2**14, max(0, os.fstat(log).st_size - 2**14))
        lines = last.decode(errors="replace").splitlines()
        shown = ("".join(c if c.isprintable() else " " for c in line).rstrip() for line in lines)
        return [line for line in shown if line][-LOG_LINES:]

    def end(self) -> None:
        """End the process and what it has started; also if it is stopped or hangs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.wire.close()
        self._log.close()


_DOING = {
    "start": "started",
    "load_weights": "took new weights",
    "sleep": "went to sleep",
    "sample": "sampled",
}


def _answers(waiting: Iterable[_Process], patience_s: float) -> Iterator[tuple[_Process, Message]]:
    """Wait for some of these processes to say something.

    Raises:
        _Lost: if one is gone, or has made no progress for so long.
    """
    poll = select.poll()
    by_descriptor = {process.wire.fileno(): process for process in waiting}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    longest = min(p.moved_at for p in by_descriptor.values()) + patience_s - time.monotonic()
    heard = [by_descriptor[d] for d, _ in poll.poll(max(0.0, longest) * 1000)]
    for process in heard:
        for message in process.read():
            yield process, message
    for process in by_descriptor.values():
        # What was never read while we did something else is no silence.
        if process not in heard and time.monotonic() - process.moved_at > patience_s:
            raise process.stuck()


def _error(process: _Process, kind: str, message: str) -> Exception:
    """Make the error that the engine raised, as if it had been raised here."""
    return UserError(message) if kind == "UserError" else RuntimeError(f"{process.name}: {message}")


def _visible_gpus(wanted: Sequence[int], count: int, environment: Mapping[str, str]) -> list[str]:
    """Name the GPUs that torch counts as ``wanted``, in the terms of CUDA_VISIBLE_DEVICES.

    Raises:
        UserError: if there are not as many, or some of a machine's GPUs must be named and are not.
    """
    if count and not wanted:
        raise UserError(
            'rollout.placement = "separate" on a machine with a GPU: say which ones the engines '
            f"get, for example rollout.engine_gpus = [{count - 1}] (0 is the trainer's)"
        )
    if wanted and max(wanted) >= count:
        raise UserError(
            f"rollout.engine_gpus = {list(wanted)}, but torch finds {count} GPUs; expected "
            + (f"numbers from 0 to {count - 1}" if count else "none on a CPU: leave it out")
        )
    names = [n for n in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if n]
    return [names[gpu] if names else str(gpu) for gpu in wanted]


def _environment(gpu: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Make an engine's environment: ours, with our import path, and only that GPU.

    Without the launcher's variables: an engine is no rank of the trainer's.
    """
    environment = {k: v for k, v in environment.items() if k not in LAUNCH}
    path = {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    return {**environment, **path, **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})}


def _end_all(processes: list[_Process], weights: SharedWeights, owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork of our process must not end what it does not own
    while processes:
        processes.pop().end()
    weights.close()
