"""What every part's program does alike: its options, and a result that survives a cut-off."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

SKIPPED = 77
"""Exit code of a part that cannot run on this machine, as in GNU's test suites."""
SHOWN = 400
"""Characters of an entry that are printed; the file has all of them."""


class Record(dict[str, Any]):
    """A part's result, on disk after every entry."""

    def __init__(self, path: Path) -> None:
        """Begin an empty one."""
        super().__init__()
        self.path = path

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        text = json.dumps(value)
        print(f"{key}: {text if len(text) <= SHOWN else text[:SHOWN] + ' ...'}", flush=True)
        write_json(self.path, self)


def write_json(path: Path, value: Any) -> None:
    """Write a file that is complete or does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def part_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every part has: the file for its result, and ``--dry-run``."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("output", type=Path, help="file for the result, written as it grows")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU: does it run?")
    return parser


def skip(why: str) -> NoReturn:
    """End a part that cannot run on this machine; the reason is its last line."""
    print(why, flush=True)
    sys.exit(SKIPPED)
