"""Keep the runs of several seeds in one JSON file, each as soon as it is there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from machine import describe

from ttrl.report.tables import TextTable

Record = dict[str, Any]
"""``what`` was run, the machine, and ``runs``: name -> seed -> what came of it."""


def kept(out: Path, what: Mapping[str, Any]) -> Record:
    """Return what ``out`` has, or an empty record; of other settings, it ends the program."""
    record: Record = json.loads(out.read_text()) if out.exists() else {**what, "runs": {}}
    if any(record[key] != value for key, value in what.items()):
        raise SystemExit(f"{out}: made with other settings: remove it first")
    return record


def complete(
    record: Record,
    names: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    run: Callable[[str, int], Mapping[str, Any]],
) -> None:
    """Make the runs that the record lacks, seed by seed, and write each at once."""
    for seed in seeds:
        for name in names:
            runs = record["runs"].setdefault(name, {})
            if str(seed) not in runs:
                runs[str(seed)] = run(name, seed)
                record["machine"] = describe()
                out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                print(f"{name}, seed {seed}: done", file=sys.stderr, flush=True)


def ttrl(folder: str, *words: str) -> Any:
    """Run a command of ttrl's that writes ``--json``, in a folder, and return that."""
    found = Path(folder) / "found.json"
    command = [sys.executable, "-m", "ttrl.cli", *words, "--json", str(found)]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    said = json.loads(found.read_text(encoding="utf-8"))
    found.unlink()  # ttrl writes over nothing
    return said


def marked(name: str, tables: Sequence[TextTable]) -> str:
    """Return tables as they stand in a page, between the marks of a script."""
    shown = "\n\n".join(table.markdown().strip() for table in tables)
    return f"<!-- tables of {name} -->\n\n{shown}\n\n<!-- end of {name} -->"


def write_into(page: Path, name: str, tables: Sequence[TextTable]) -> None:
    """Replace a script's tables in a page."""
    text = page.read_text(encoding="utf-8")
    before, begun, rest = text.partition(f"<!-- tables of {name} -->")
    _, ended, after = rest.partition(f"<!-- end of {name} -->")
    if not (begun and ended):
        raise SystemExit(f"{page}: expected the marks <!-- tables of {name} --> and its end")
    page.write_text(before + marked(name, tables) + after, encoding="utf-8")


def counted(record: Record, name: str) -> str:
    """Say of how many seeds the runs of this name are."""
    count = len(record["runs"][name])
    return f"{count} seed{'s' if count != 1 else ''}"


def spread(found: Sequence[float]) -> str:
    """Write a mean, with the lowest and the highest value where there are several."""
    if len(found) == 1:
        return f"{found[0]:.1f}"
    return f"{fmean(found):.1f} ({min(found):.1f} to {max(found):.1f})"
