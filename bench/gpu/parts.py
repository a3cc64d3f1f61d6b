"""Runs parts one after the other, each within its time; what has ended is on disk, whatever comes.

A part is a program of its own. While it runs, its result grows in ``NAME.partial.json``; when it
ends, in whatever way, that becomes ``NAME.json``, with how it ended and how long it took. So a
machine that is taken away loses nothing but the rest of one part.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Timer
from typing import Any

from record import SKIPPED, write_json

from ttrl.system.launch import end_with_parent

ROOT = Path(__file__).parents[2]
OUTPUT = "OUTPUT"
"""Stands for the file of a part's result among its arguments."""
DRY_LIMIT_S = 600
"""Of a part in a dry run, whose machine may be slow and busy: no limit is what it is about."""
KEPT_LINES = 60
"""Of what a part that did not pass has printed, in its JSON."""
GRACE_S = 10
"""Between asking a part to end and ending it."""

PASSED, FAILED, TIMED_OUT, CUT_OFF = "passed", "failed", "timed out", "cut off"
NOT_HERE, NOT_RUN = "skipped", "not run"


@dataclass(frozen=True)
class Part:
    """One program, and what decides whether it runs."""

    name: str
    measures: str
    limit_s: int
    arguments: tuple[str, ...]
    """Of Python; `OUTPUT` stands for the file of its result."""
    dry: tuple[str, ...] = ("--dry-run",)
    """Further arguments of a dry run."""
    needs: tuple[str, ...] = ()
    """Packages without which it is skipped."""
    correctness: bool = False
    """Checks numbers: after its failure only other such parts run, no speed is measured."""
    gate: bool = False
    """Runs first whatever was asked for, and nothing runs after its failure."""


def main(description: str | None, parts: Sequence[Part]) -> int:
    """Run the parts that the command line asks for; the exit code says whether all is well."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="PART", help="which; all of them by default")
    parser.add_argument("--list", action="store_true", help="print what there is, and stop")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU: does it run?")
    parser.add_argument(
        "--output", type=Path, help="folder; default $OUT, or bench/results/gpu (dry: a new one)"
    )
    options = parser.parse_args()
    unknown = sorted(set(options.names) - {p.name for p in parts})
    if unknown:
        parser.error(f"no part {unknown[0]!r}: expected some of {', '.join(p.name for p in parts)}")
    if options.list:
        for part in parts:
            print(f"{part.name:18} at most {part.limit_s:4} s  {part.measures}")
        return 0
    chosen = [p for p in parts if p.gate or not options.names or p.name in options.names]
    folder = options.output or _default_folder(options.dry_run)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return run(chosen, folder.absolute(), dry=options.dry_run)


def run(parts: Sequence[Part], folder: Path, *, dry: bool) -> int:
    """Run the parts in order; 0 if each passed, or was skipped for what is not on this machine."""
    for part in parts:  # what an earlier run left is not to be taken for this one's
        for path in _files(part, folder):
            path.unlink(missing_ok=True)
    most = "a dry run" if dry else f"at most {sum(part.limit_s for part in parts)} s"
    print(f"{len(parts)} parts, {most}, results in {folder}", flush=True)
    wrong: list[Part] = []
    summary = []
    for part in parts:
        ended = _refusal(part, wrong) or _run(part, folder, dry=dry)
        if ended["status"] not in (PASSED, NOT_HERE):
            wrong.append(part)
        summary.append(_finish(part, folder, ended))
    print("\n" + "\n".join(summary), flush=True)
    return 1 if wrong else 0


def _refusal(part: Part, wrong: Sequence[Part]) -> dict[str, Any] | None:
    """How a part ends that does not begin; None for one that is to run."""
    if gates := [p.name for p in wrong if p.gate]:
        return {"status": NOT_RUN, "why": f"{gates[0]} did not pass"}
    if not part.correctness and (checks := [p.name for p in wrong if p.correctness]):
        return {"status": NOT_RUN, "why": f"no speed without correctness: {', '.join(checks)}"}
    if lacking := [name for name in part.needs if find_spec(name) is None]:
        return {"status": NOT_HERE, "why": f"not installed: {', '.join(lacking)}"}
    return None


def _run(part: Part, folder: Path, *, dry: bool) -> dict[str, Any]:
    """Run one part to its end or its limit; returns how it ended."""
    _, partial = _files(part, folder)
    arguments = [str(partial) if a == OUTPUT else a for a in part.arguments]
    arguments += part.dry if dry else ()
    limit_s = DRY_LIMIT_S if dry else part.limit_s
    print(f"\n=== {part.name}: {part.measures} (at most {limit_s} s)", flush=True)
    begun = time.perf_counter()
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=_environment(dry),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    timer = Timer(limit_s, _end, [process])
    try:
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
        code = process.wait()
    except (SystemExit, KeyboardInterrupt):  # of this script: what there is of the part is kept
        _end(process)
        _finish(part, folder, {"status": CUT_OFF, "why": "the script was ended"})
        raise
    finally:
        timer.cancel()
        _end(process)
    seconds = round(time.perf_counter() - begun, 1)
    ended = {**_outcome(code, seconds, limit_s, lines), "seconds": seconds}
    return ended if ended["status"] == PASSED else {**ended, "last_lines": list(lines)}


def _outcome(code: int, seconds: float, limit_s: float, lines: deque[str]) -> dict[str, Any]:
    if code == 0:
        return {"status": PASSED}
    if code == SKIPPED:
        return {"status": NOT_HERE, "why": lines[-1] if lines else "it did not say why"}
    if seconds >= limit_s:
        return {"status": TIMED_OUT, "why": f"not done after {limit_s} s"}
    return {"status": FAILED, "why": f"exit code {code}"}


def _end(process: subprocess.Popen[str]) -> None:
    """End a part and all that it has started, politely at first."""
    with suppress(ProcessLookupError):  # nothing of it is left
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        os.killpg(process.pid, signal.SIGKILL)


def _finish(part: Part, folder: Path, ended: dict[str, Any]) -> str:
    """Make ``NAME.json`` of how a part ended and of what it wrote until then; one line says it."""
    path, partial = _files(part, folder)
    result = json.loads(partial.read_text(encoding="utf-8")) if partial.exists() else None
    head = {"part": part.name, "measures": part.measures, "limit_s": part.limit_s}
    own = (result or {}).get("machine")  # only "environment" says it; it runs before the others
    write_json(path, {**head, **ended, "machine": own or _machine(folder), "result": result})
    partial.unlink(missing_ok=True)
    took = f" in {ended['seconds']} s" if "seconds" in ended else ""
    why = f" ({ended['why']})" if "why" in ended else ""
    line = f"{part.name}: {ended['status']}{took}{why}"
    print(f"=== {line}", flush=True)
    return line


def _machine(folder: Path) -> Any:
    """What the part "environment" has found; none before it has ended."""
    path = folder / "environment.json"
    found = json.loads(path.read_text(encoding="utf-8"))["result"] if path.exists() else None
    return found and found.get("machine")


def _files(part: Part, folder: Path) -> tuple[Path, Path]:
    """Of a part that has ended, and of one that runs."""
    return folder / f"{part.name}.json", folder / f"{part.name}.partial.json"


def _default_folder(dry: bool) -> Path:
    if dry:
        return Path(tempfile.mkdtemp(prefix="ttrl_dry_run_"))
    return Path(os.environ.get("OUT") or ROOT / "bench" / "results" / "gpu")


def _environment(dry: bool) -> dict[str, str]:
    """A part finds the project and the bench; a dry run has no GPU, and interprets Triton."""
    own = [ROOT / "kernels", ROOT, ROOT / "bench", ROOT / "bench" / "gpu"]
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, own), *inherited])}
    environment |= {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    if dry:
        environment |= {
            "CUDA_VISIBLE_DEVICES": "",
            "TRITON_INTERPRET": "1",
            "TORCHDYNAMO_DISABLE": "1",
        }
    return environment
