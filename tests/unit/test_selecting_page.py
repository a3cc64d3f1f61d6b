"""docs/selecting.md: its figures of the bench are in the JSON, its rules and settings are ours."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ttrl.selection.curves import RESAMPLES
from ttrl.selection.rules import RULES
from ttrl.settings import SelectionSettings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "selecting.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
RESULTS = ROOT / "bench" / "results"
FOUND = json.loads((RESULTS / "selection.json").read_text(encoding="utf-8"))
SEEDS: dict[str, Any] = json.loads((RESULTS / "selecting.json").read_text(encoding="utf-8"))


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


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """`bench/selecting.py`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        import selecting

        yield selecting
    for name in ("selecting", "kept_runs", "pages", "machine"):
        sys.modules.pop(name, None)


def test_its_tables_are_those_of_the_json(bench: ModuleType) -> None:
    assert bench.marked(bench.CHOSEN, [bench.rules_table(SEEDS)]) in PAGE
    assert bench.marked(bench.STOPPED, [bench.stops_table(SEEDS)]) in PAGE


def test_what_is_said_in_words_is_in_every_seed(bench: ModuleType) -> None:
    for seed in bench.seeds_of(SEEDS):
        right = seed["right"]
        assert right["self-certainty"]["64"] < right["self-certainty"]["16"] < 0.2
        assert right["self-certainty"]["16"] < right["self-certainty"]["4"]
        assert max(right["self-certainty"]["64"], seed["right_by_all_tokens"]) < 0.1
        for rule in ("borda", "deepconf"):
            assert abs(right[rule]["64"] - right["majority"]["64"]) < 0.05
        # All answers elect what the first ones do.
        assert seed["online"]["vote"]["right"] == right["majority"]["64"]
        assert seed["replayed"]["vote"]["right"] == pytest.approx(right["majority"]["64"])
        for kind in bench.KINDS:
            vote, usual, strict = (bench.saved(seed, kind, name) for name in bench.STOPS)
            assert 0 < usual < vote < 25 < strict
            assert seed[kind]["deepconf, strict"]["right"] < 0.5
        for name in bench.STOPS:
            one, other = (seed[kind][name] for kind in bench.KINDS)
            assert abs(one["right"] - other["right"]) < 0.1
            assert one["tokens"] == pytest.approx(other["tokens"], rel=0.05)


def test_what_is_estimated_to_be_saved_is_near_what_was(bench: ModuleType) -> None:
    for seed in bench.seeds_of(SEEDS):
        for name in bench.STOPS:
            online = seed["online"][name]
            estimated = 100 - 100 * online["tokens"] / online["expected"]
            assert estimated == pytest.approx(bench.saved(seed, "online", name), abs=2)
