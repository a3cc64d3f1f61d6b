"""docs/selecting.md: its figures of the bench are in the JSON, its rules and settings are ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ttrl.selection.curves import RESAMPLES
from ttrl.selection.rules import RULES
from ttrl.settings import SelectionSettings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "selecting.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
FOUND = json.loads((ROOT / "bench" / "results" / "selection.json").read_text(encoding="utf-8"))


def test_what_it_says_was_measured_is_in_the_json() -> None:
    said = (
        f"Choosing from {FOUND['answers']} recorded answers to each of {FOUND['questions']} "
        f"questions, by {len(FOUND['rules'])} rules and at {FOUND['points']} points of their "
        f"curves, takes {FOUND['seconds']:.0f} seconds from the start of the command on "
        f"{FOUND['machine']['cores']} cores, reading {FOUND['megabytes']:.0f} MB of answers"
    )
    assert said in TEXT


def test_it_was_five_hundred_groups_in_under_a_minute_by_all_rules_but_one() -> None:
    assert FOUND["questions"] == 500
    assert FOUND["seconds"] < 60
    assert FOUND["machine"]["cores"] == 2
    assert FOUND["rules"] == [name for name, rule in RULES.items() if rule.reads != "policy"]


def test_its_table_has_every_rule() -> None:
    assert re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE) == list(RULES)


def test_it_names_settings_that_there_are() -> None:
    named = set(re.findall(r"selection\.(\w+)", PAGE.replace("bench/selection.py", "")))
    assert named <= set(SelectionSettings.model_fields)
    assert f"`selection.top_logprobs` ({SelectionSettings().top_logprobs})" in PAGE
    assert f"{RESAMPLES:,} bootstrap samples" in TEXT


def test_its_sentences_have_the_figures_of_its_output() -> None:
    said = re.search(r"Self-certainty is right ([\d.]+) % of the time", TEXT)
    row = re.search(r"│ self-certainty │ (.*) │$", PAGE, re.MULTILINE)
    assert said is not None
    assert row is not None
    assert said[1] == row[1].split("│")[-1].strip()
