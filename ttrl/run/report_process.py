"""Writes a run's page: ``python -m ttrl.run.report_process RUN``, for `ttrl.run.live_report`.

Its input is JSON: ``{"references": {"q1": "7"}, "ended": false}``, with null for references that
are in the run's folder. It prints the seconds it took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from ttrl.answers import Grader
from ttrl.report.page.page import write_page
from ttrl.report.run_record import read_run
from ttrl.run.references import references
from ttrl.system.launch import end_with_parent


def main() -> None:
    """Write the page, after all others who want the processor."""
    begun = time.monotonic()
    end_with_parent()
    os.nice(10)
    given = json.load(sys.stdin)
    run = read_run(Path(sys.argv[1]))
    if given["ended"] and run.state == "running":  # to its process's end, a moment from now
        run = replace(run, state="unfinished")
    known = given["references"]
    if known is None:
        known = references(run)
    with Grader(run.settings.answers) as grader:
        write_page(run.path / "report.html", [run], [known], grader)
    print(time.monotonic() - begun)


if __name__ == "__main__":
    main()
