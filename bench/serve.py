"""A server that learns, under 500 requests of OpenAI's own client; killed half-way, started again.

    .venv/bin/python bench/serve.py                      write bench/results/serve.json
    .venv/bin/python bench/serve.py --requests 40 --out tiny.json    a rehearsal

Eight clients at a time ask additions by ``/v1/chat/completions``, each with a key of its own, from
an address of this machine that is not loopback. When half of them are answered the server is ended
by SIGKILL, and started by the same command. Then hostile requests, and what is on disk is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

import httpx
from machine import ROOT, describe
from openai import APIConnectionError, APIStatusError, OpenAI
from stream import stream

RESULTS = ROOT / "bench" / "results" / "serve.json"
CLIENTS = 8
SETTINGS = ["threads=1", "rollout.votes=32", "checkpoint.every=5", "serve.held_s=1"]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        server = Server(Path(place) / "run")
        try:
            result = measure(server, arguments.requests)
        finally:
            server.kill()
    record = {"machine": describe(), "settings": SETTINGS, "clients": CLIENTS, **result}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


class Server:
    """``ttrl serve`` in a process, at an address that others reach."""

    def __init__(self, run: Path) -> None:
        self.run, self.token = run, secrets.token_hex(16)
        with socket.socket() as free:
            free.bind(("0.0.0.0", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://{own_address()}:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        begun = time.monotonic()
        command = [sys.executable, "-m", "ttrl.cli", "serve", "tiny-stream", "--host", "0.0.0.0"]
        command += ["--port", str(self.port), "--run-dir", str(self.run)]
        command += [part for setting in SETTINGS for part in ("--set", setting)]
        env = os.environ | {"TTRL_TOKEN": self.token, "OMP_NUM_THREADS": "1"}
        self.log = self.run.with_suffix(".log").open("a")
        self.process = subprocess.Popen(command, env=env, stdout=self.log, stderr=self.log)
        while True:
            try:
                httpx.get(f"{self.url}/health", timeout=1).raise_for_status()
                break
            except httpx.HTTPError:
                if self.process.poll() is not None or time.monotonic() - begun > 120:
                    raise SystemExit(self.run.with_suffix(".log").read_text()) from None
                time.sleep(0.1)
        self.started_s = time.monotonic() - begun

    def kill(self, how: int = signal.SIGKILL) -> int:
        """End it by a signal; return the exit code."""
        self.process.send_signal(how)
        return self.process.wait(60)

    def status(self) -> dict[str, Any]:
        """Ask how it stands."""
        headers = {"Authorization": f"Bearer {self.token}"}
        found: dict[str, Any] = httpx.get(f"{self.url}/v1/status", headers=headers).json()
        return found


def own_address() -> str:
    """Return an address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return str(probe.getsockname()[0])


def measure(server: Server, count: int) -> dict[str, Any]:
    """Ask, kill, start, ask on; return what was seen by the clients and what is on disk."""
    asked, seen, lock = stream(0, count), [], threading.Lock()
    client = OpenAI(base_url=f"{server.url}/v1", api_key=server.token, max_retries=0, timeout=60)
    killed = {"at": 0.0, "s": 0.0}

    def kill_and_start() -> None:
        begun = time.monotonic()
        server.kill()
        killed["before"] = len(lines(server.run))
        server.start()
        killed.update(at=begun, s=time.monotonic() - begun)

    def ask(row: dict[str, str]) -> None:
        tries, begun = 0, time.monotonic()
        while True:
            tries += 1
            last = time.monotonic()
            try:
                said = client.chat.completions.create(
                    model="tiny-stream",
                    messages=[{"role": "user", "content": row["prompt"]}],
                    extra_headers={"Idempotency-Key": row["id"]},
                )
                break
            except (APIConnectionError, APIStatusError) as error:
                if isinstance(error, APIStatusError) and error.status_code not in (429, 503):
                    raise
                time.sleep(0.2)
        now, votes = time.monotonic(), said.model_extra["ttrl"]
        with lock:
            seen.append(
                {
                    **{key: votes[key] for key in ("number", "answer", "updates", "held_s")},
                    "id": row["id"],
                    "right": votes["answer"] == row["answer"],
                    "s": now - last,
                    "s_in_all": now - begun,
                    "tries": tries,
                }
            )
            is_half = len(seen) == count // 2
        if is_half:
            kill_and_start()

    begun = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(ask, asked))
    took = time.monotonic() - begun
    hostile = attack(server)
    status = server.status()
    code = server.kill(signal.SIGTERM)
    return {
        "requests": count,
        "seconds": took,
        "requests_per_s": count / (took - killed["s"]),
        "latency_s": spread([x["s"] for x in seen if x["tries"] == 1]),
        "asked_again": sum(x["tries"] > 1 for x in seen),
        "down_s": killed["s"],
        "held_s": {"bound": 1.0, "largest": max(x["held_s"] for x in seen)},
        "longest_push_s": status["longest_push_s"],
        "updates": max(x["updates"] for x in seen),
        "majority_right": thirds([x["right"] for x in sorted(seen, key=lambda x: x["number"])]),
        "on_disk": on_disk(server.run, seen) | {"before_the_kill": killed["before"]},
        "hostile": hostile,
        "exit_code_after_sigterm": code,
        "waiting_at_the_end": status["waiting"],
    }


def lines(run: Path) -> list[dict[str, Any]]:
    """Read the answers on disk."""
    whole = (run / "stream" / "answers.jsonl").read_bytes().rpartition(b"\n")[0]
    return list(map(json.loads, whole.splitlines()))


def on_disk(run: Path, seen: list[dict[str, Any]]) -> dict[str, int]:
    """Count the answers, those given twice, and those of which a client was told another."""
    answers = lines(run)
    by_id = {x["id"]: x["answer"] for x in answers}
    accepted = (run / "stream" / "questions.jsonl").read_text().splitlines()
    return {
        "accepted": len(accepted),
        "answers": len(answers),
        "answered_twice": sum(n > 1 for n in Counter(x["id"] for x in answers).values()),
        "without_answer": len(accepted) - len(by_id),
        "told_otherwise": sum(by_id[x["id"]] != x["answer"] for x in seen),
    }


def attack(server: Server) -> dict[str, int]:
    """Send what must be refused; return the status of each."""
    kind, body = {"Content-Type": "application/json"}, b'{"prompt": "What is 1 + 2?"}'
    known = kind | {"Authorization": f"Bearer {server.token}"}
    tries: dict[str, tuple[bytes, dict[str, str]]] = {
        "no token": (body, kind),
        "another token": (body, kind | {"Authorization": "Bearer " + "0" * 32}),
        "64 MiB": (b"[" + b"0," * 2**25 + b"0]", known),
        "no JSON": (b'{"prompt":', known),
        "100000 brackets": (b"[" * 100_000, known),
        "a form": (b"prompt=1", known | {"Content-Type": "application/x-www-form-urlencoded"}),
        "a prompt of 100000 tokens": (json.dumps({"prompt": "1" * 100_000}).encode(), known),
        "not UTF-8": (b"\xff" * 100, known),
    }
    found = {}
    for name, (content, headers) in tries.items():
        url = f"{server.url}/v1/questions"
        found[name] = httpx.post(url, content=content, headers=headers, timeout=60).status_code
    return found


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the median, the 95th percentile, and the largest."""
    cuts = quantiles(seconds, n=20)
    return {"median": cuts[9], "p95": cuts[18], "largest": max(seconds)}


def thirds(right: list[bool]) -> list[float]:
    """Return the share of right answers in each third."""
    n = len(right) // 3
    return [fmean(right[i * n : (i + 1) * n]) for i in range(3)]


if __name__ == "__main__":
    main()
