"""A process that hosts one rollout engine.

`ttrl.rollout.engines.remote_engine` starts it, as ``python -m ttrl.rollout.engines.engine_process
SOCKET WEIGHTS``, two inherited file descriptors, and asks it. It reads one request per line, each
with a number of its own (see `ttrl.rollout.engines.wire`):

    {"call": 1, "do": "start", "settings": "…", "load_weights": false, "threads": 2,
     "deterministic": true}
    {"call": 2, "do": "load_weights", "index": {…}, "version": 1}
    {"call": 3, "do": "sample", "questions": […], "params": {…}}
    {"call": 4, "do": "sleep"}
    {"call": 3, "do": "stop"}                    nobody waits for the rest of call 3 any more

and answers with the number of the request:

    {"call": 3, "steps": 17}                     about every second, while it works: see `BEAT_S`
    {"call": 3, "sampled": {"question": 0, "completions": […]}}    its index among those asked
    {"call": 3, "done": {"version": 1}}          the last answer; the version of the weights
    {"call": 3, "failed": ["UserError", "…"]}    or this one

It does not outlive the trainer: it ends, with all that it may have started, when the socket does,
and at the latest when the kernel tells that the thread which started it is gone.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any

import torch

from ttrl.models.pretrained import load_tokenizer
from ttrl.rollout.engines.base import CountingEngine
from ttrl.rollout.engines.shared_weights import read_weights
from ttrl.rollout.engines.wire import Message, Wire, from_completion, to_question
from ttrl.rollout.pool import make_engine
from ttrl.rollout.sampling import ConfidenceFloor, SamplingParams
from ttrl.settings import Settings
from ttrl.system.launch import end_with_parent
from ttrl.system.ranks import Ranks
from ttrl.types import UserError

BEAT_S = 0.5
"""Seconds between two messages that say how far the engine has come."""


class Host:
    """Does what the trainer asks, one request after the other."""

    def __init__(self, wire: Wire, weights: int) -> None:
        """Take ``weights``: the descriptor of the memory that weights are pushed through."""
        self._wire = wire
        self._weights = weights
        self._engine: CountingEngine | None = None
        self._version = 0
        self._requests: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._working_on: int | None = None
        self._stopped = 0

    def run(self) -> None:
        """Work until the trainer is gone; does not return."""
        # It reads while the engine works: so the trainer never waits to be listened to.
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()
        while True:
            request = self._requests.get()
            self._working_on = request["call"]
            reply = self._answer(request)
            self._working_on = None
            self._wire.send({"call": request["call"], **reply})

    def _answer(self, request: Message) -> Message:
        try:
            match request["do"]:
                case "start":
                    self._start(request)
                case "load_weights":
                    self._load_weights(request)
                case "sleep":
                    self._started().sleep()
                case "sample":
                    self._sample(request)
        except Exception as error:  # whatever it is, the trainer must hear of it
            traceback.print_exc()
            kind = "UserError" if isinstance(error, UserError) else "RuntimeError"
            named = isinstance(error, UserError | RuntimeError)
            return {"failed": [kind, f"{'' if named else type(error).__name__ + ': '}{error}"]}
        return {"done": {"version": self._version}}

    def _start(self, request: Message) -> None:
        """Make the engine, in a torch that computes as the trainer's does."""
        settings = Settings.model_validate_json(request["settings"])
        torch.set_num_threads(request["threads"])
        on_gpu = torch.cuda.is_available()
        torch.use_deterministic_algorithms(request["deterministic"], warn_only=on_gpu)
        tokenizer = load_tokenizer(settings.model)
        self._engine = make_engine(
            settings, tokenizer, Ranks(), load_weights=request["load_weights"]
        )

    def _load_weights(self, request: Message) -> None:
        self._started().load_weights(read_weights(self._weights, request["index"]))
        self._version = request["version"]

    def _sample(self, request: Message) -> None:
        questions = [to_question(values) for values in request["questions"]]
        params = _params(request["params"])
        call = request["call"]
        for place, completions in self._started().sample(questions, params):
            sampled = {"question": place, "completions": list(map(from_completion, completions))}
            self._wire.send({"call": call, "sampled": sampled})
            if self._stopped == call:
                return

    def _started(self) -> CountingEngine:
        if self._engine is None:
            raise RuntimeError("the engine was not started")
        return self._engine

    def _listen(self) -> None:
        """Queue what is asked; end this process when nobody can ask any more."""
        try:
            while True:
                for message in self._wire.read():
                    if message["do"] == "stop":
                        self._stopped = message["call"]
                    else:
                        self._requests.put(message)
        except EOFError:
            os.killpg(0, signal.SIGKILL)

    def _beat(self) -> None:
        """Say how far the engine has come: a trainer takes one that comes no further for stuck."""
        pause = threading.Event()
        while True:
            pause.wait(BEAT_S)
            call, engine = self._working_on, self._engine
            if call is not None:
                self._wire.send({"call": call, "steps": 0 if engine is None else engine.steps})


def _params(values: dict[str, Any]) -> SamplingParams:
    lists = {name: tuple(values[name]) for name in ("stop", "stream")}
    floor = values["floor"]
    least = None if floor is None else ConfidenceFloor(**floor)
    return SamplingParams(**{**values, **lists, "floor": least})


def main(arguments: Sequence[str]) -> None:
    """Host an engine until the trainer is gone."""
    end_with_parent()
    end, weights = map(int, arguments)
    Host(Wire(socket.socket(fileno=end)), weights).run()


if __name__ == "__main__":
    main(sys.argv[1:])
