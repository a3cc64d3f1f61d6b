"""What docs/serve.md says was measured is in the JSON, and its program is a client's."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
FOUND = json.loads((ROOT / "bench" / "results" / "serve.json").read_text(encoding="utf-8"))


def test_its_table_is_what_was_measured() -> None:
    latency, disk, held = FOUND["latency_s"], FOUND["on_disk"], FOUND["held_s"]
    first, _, last = (f"{100 * share:.1f}" for share in FOUND["majority_right"])
    expected = [
        f"| requests, clients | {FOUND['requests']}, {FOUND['clients']} at a time |",
        f"| accepted, answered, answered twice, told otherwise | {disk['accepted']}, "
        f"{disk['answers']}, {disk['answered_twice']}, {disk['told_otherwise']} |",
        f"| answered before the kill, asked again after it | {disk['before_the_kill']}, "
        f"{FOUND['asked_again']} |",
        f"| seconds to an answer: median, 95th percentile, largest | {latency['median']:.2f}, "
        f"{latency['p95']:.2f}, {latency['largest']:.2f} |",
        f"| longest that learning held up an answer; bound | {1000 * held['largest']:.0f} ms; "
        f"{held['bound']:.0f} s |",
        f"| answers a second; updates after the kill | {FOUND['requests_per_s']:.1f}; "
        f"{FOUND['updates']} |",
        f"| majority right, first and last third | {first} %, {last} % |",
    ]
    table = [line for line in PAGE.splitlines() if line.startswith("| ")]
    assert table[-len(expected) :] == expected
    assert disk["without_answer"] == FOUND["waiting_at_the_end"] == 0


def test_hostile_requests_were_refused_as_it_says() -> None:
    assert FOUND["hostile"] == {
        "no token": 401, "another token": 401, "64 MiB": 413, "no JSON": 400,
        "100000 brackets": 400, "a form": 415, "a prompt of 100000 tokens": 400, "not UTF-8": 400,
    }  # fmt: skip
    said = re.findall(r"\((\d{3})\)", PAGE.rpartition("Refused meanwhile")[2])
    assert set(map(int, said)) == set(FOUND["hostile"].values())
