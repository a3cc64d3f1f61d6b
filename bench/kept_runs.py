"""The runs of a benchmark that are made once, each kept in a JSON file as soon as it is there."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from machine import describe, rows
from rich.console import Console

Key = tuple[str | int, ...]
"""What a run is found by: a name, or several, and the seed."""


class KeptRuns:
    """A file of runs, with the settings that all of them were made with."""

    def __init__(self, path: Path, made_with: Mapping[str, Any]) -> None:
        """Read the file, if it is there.

        Raises:
            SystemExit: if its runs were made with other settings.
        """
        self.path = path
        wanted = json.loads(json.dumps(made_with))  # as the file has it: it knows no tuples
        self.record = json.loads(path.read_text()) if path.exists() else {**wanted, "runs": {}}
        """All that the file holds; "runs" has them by name and seed."""
        if any(self.record.get(key) != value for key, value in wanted.items()):
            raise SystemExit(f"{path}: made with other settings: remove it first")

    def has(self, key: Key) -> bool:
        """Say whether a run is there."""
        found = self.record["runs"]
        for part in map(str, key):
            if part not in found:
                return False
            found = found[part]
        return True

    def add(self, key: Key, run: dict[str, Any]) -> None:
        """Put a run in its place; `write` keeps it."""
        *names, seed = map(str, key)
        place = self.record["runs"]
        for name in names:
            place = place.setdefault(name, {})
        place[seed] = run

    def write(self, **more: Any) -> None:
        """Write the file, with what else it is to hold."""
        self.record |= {"machine": describe(), **more}
        self.path.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")

    def made(
        self,
        run: Callable[..., dict[str, Any]],
        wanted: Mapping[Key, Sequence[Any]],
        jobs: int,
        console: Console,
    ) -> Iterator[tuple[Key, dict[str, Any]]]:
        """Make the runs that are not there, several at a time; one that fails is only reported.

        Args:
            run: makes one.
            wanted: runs, each with the arguments that it is made with.
            jobs: how many at a time.
            console: where a failure is reported.

        Yields:
            Each run that was made, to be added.

        Raises:
            SystemExit: if some are missing, and those that are there were made with other rows.
        """
        missing = {key: arguments for key, arguments in wanted.items() if not self.has(key)}
        if missing:
            self._refuse_other_rows()
        # Started, not forked, and each used for many runs: importing takes a fifth of a run.
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            tasks = {pool.submit(run, *arguments): key for key, arguments in missing.items()}
            for done in as_completed(tasks):
                key = tasks[done]
                if error := done.exception():
                    console.print(f"{named(key)} failed: {error!r}", markup=False)
                else:
                    yield key, done.result()

    def _refuse_other_rows(self) -> None:
        """Refuse to mix runs that no one machine could make again, digit by digit."""
        before, now = self.record.get("machine", {}).get("rows", rows()), rows()
        if before != now:
            raise SystemExit(
                f"{self.path}: its runs were made with the row operations {before!r}, and those of "
                f"this installation are {now!r}, which round otherwise: write other runs to "
                "another file with --out, or install as docs/kernels.md says"
            )

    def complete(
        self,
        run: Callable[..., dict[str, Any]],
        wanted: Mapping[Key, Sequence[Any]],
        jobs: int,
        console: Console,
    ) -> None:
        """Make the runs that are not there, as `made` does; keep and report each at once."""
        for key, found in self.made(run, wanted, jobs, console):
            self.add(key, found)
            self.write()
            console.print(f"{named(key)}: done", markup=False)


def named(key: Key) -> str:
    """Name a run for the user."""
    *names, seed = key
    return f"{', '.join(map(str, names))}, seed {seed}"


def counted(record: Mapping[str, Any], name: str) -> str:
    """Say of how many seeds the runs of a name are."""
    count = len(record["runs"][name])
    return f"{count} seed{'s' if count != 1 else ''}"


def command_line(doc: str | None, results: Path) -> argparse.ArgumentParser:
    """Make the parser of a program whose runs are kept in ``results``."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=results)
    parser.add_argument("--show", action="store_true", help="run nothing")
    return parser


def ttrl(folder: str, *words: str) -> Any:
    """Run a command of ttrl's that writes ``--json``, in a folder, and return that."""
    found = Path(folder) / "found.json"
    command = [sys.executable, "-m", "ttrl.cli", *words, "--json", str(found)]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    said = json.loads(found.read_text(encoding="utf-8"))
    found.unlink()  # ttrl writes over nothing
    return said


def spread(values: Sequence[float], *, between: str = " to ", digits: int = 1) -> str:
    """Write a mean with the lowest and the highest value; of one value, that; of none, nothing."""
    if not values:
        return ""
    mean, low, high = (f"{x:.{digits}f}" for x in (fmean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low}{between}{high})"
