"""Stands in for ``ttrl.rollout.engines.engine_process``: loads nothing, and does what a prompt
says."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from ttrl.rollout.engines.wire import Message, Wire


def sample(wire: Wire, request: Message) -> None:
    call = request["call"]
    for i, (_, prompt, _) in enumerate(request["questions"]):
        match prompt.split():
            case ["log", lines]:
                print("".join(f"line {n}\n" for n in range(int(lines))), end="", flush=True)
            case ["exit", code]:
                os._exit(int(code))
            case ["hangup"]:
                wire.close()
                time.sleep(60)
            case ["signal", name]:
                os.kill(os.getpid(), signal.Signals[name])
            case [("decode" | "hang") as what, seconds]:
                until = time.monotonic() + float(seconds)
                steps = 0
                while time.monotonic() < until:
                    steps += what == "decode"
                    wire.send({"call": call, "steps": steps})
                    time.sleep(0.1)
        completions = [
            [[n], [-0.5], f"{prompt} {n}", "stop", None, None]
            for n in range(request["params"]["n"])
        ]
        wire.send({"call": call, "sampled": {"question": i, "completions": completions}})


def main(end: str) -> None:
    wire = Wire(socket.socket(fileno=int(end)))
    version = 0
    try:
        while True:
            for request in wire.read():
                if request["do"] == "stop":
                    continue
                if request["do"] == "sample":
                    sample(wire, request)
                version = request.get("version", version)
                wire.send({"call": request["call"], "done": {"version": version}})
    except (EOFError, OSError):
        pass  # as the real one, it ends with the trainer


if __name__ == "__main__":
    main(sys.argv[1])
