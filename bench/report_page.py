"""How large a report is, and how long it takes to write and to open.

    .venv/bin/python bench/report_page.py                  needs Chromium, as tests/browser does

A run of 1000 steps with 16 questions and 64 votes each, a million answers in all, is made up
(`tests/report_runs.py`). Written with numeric answers only, so computer algebra has no part in it.
Opened: until all curves are drawn and the questions are listed, and before that until the page can
first be read. Writes ``bench/results/report_page.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import ROOT, describe
from playwright.sync_api import sync_playwright

from ttrl.answers import default_grader
from ttrl.report.page.page import write_page

sys.path.insert(0, str(ROOT / "tests"))
from report_runs import long_run

REPEATS = 5


def opening(path: Path) -> dict[str, Any]:
    """Seconds until the page can be read, and until everything is there."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    readable, ready = [], []
    with sync_playwright() as driver:
        flags = ["--headless", "--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=chromium, args=flags)
        version = browser.version
        for _ in range(REPEATS):
            page = browser.new_context().new_page()
            page.goto("about:blank")
            begun = time.perf_counter()
            page.goto(path.as_uri(), wait_until="commit")
            page.wait_for_selector("html[data-ready]", state="attached")
            ready.append(time.perf_counter() - begun)
            entry = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
            readable.append(page.evaluate(entry))
            page.context.close()
        browser.close()
    return {
        "chromium": version,
        "first_paint_s": readable,
        "ready_s": ready,
        "median_ready_s": statistics.median(ready),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--votes", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = long_run(Path(folder) / "run", given.steps, given.questions, given.votes)
        answers = sum(f.stat().st_size for f in (run.path / "rollouts").iterdir())
        path = Path(folder) / "report.html"
        references = {f"train-{i}": str(i) for i in range(512)}
        begun, used = time.perf_counter(), time.process_time()
        write_page(path, [run], [references], default_grader())
        found = {
            "run": vars(given),
            "rollouts_bytes": answers,
            "page_bytes": path.stat().st_size,
            "steps_with_texts": path.read_text().count('<script type="text/plain"') - 1,
            "writing_s": time.perf_counter() - begun,
            "writing_cpu_s": time.process_time() - used,
            **opening(path),
            "machine": describe(),
        }
    text = json.dumps(found, indent=2)
    (ROOT / "bench" / "results" / "report_page.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
