"""A server in a process of its own, which tests ask and end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TOKEN = "0123456789abcdef"


class Server:
    """``ttrl serve`` at a free port of this machine."""

    def __init__(self, run: Path, *settings: str) -> None:
        import httpx  # is not there everywhere

        words = [x for s in settings for x in ("--set", s)]
        words = ["serve", "tiny-stream", "--port", "0", "--run-dir", str(run), *words]
        self.said = run.with_suffix(".txt")
        environment = os.environ | {"TTRL_TOKEN": TOKEN, "CUDA_VISIBLE_DEVICES": ""}
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ttrl.cli", *words],
                stdout=said,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        deadline = time.monotonic() + 120
        while "serving at " not in (text := self.said.read_text()):
            assert self.process.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.1)
        self.url = text.partition("serving at ")[2].partition(";")[0]
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def ask(self, a: int, *, wait: str = "true", **more: Any) -> Any:
        asked = {"prompt": f"What is {a} + 12?", "id": f"q{a}", **more}
        return self.client.post(f"/v1/questions?wait={wait}", json=asked)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get("/v1/status").json()
        return found

    def end(self, how: int) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)


def kept(run: Path, name: str) -> list[dict[str, Any]]:
    return list(map(json.loads, (run / "stream" / f"{name}.jsonl").read_text().splitlines()))
