"""docs/agents.md: its tables are those of `bench/agents.py`, and what it says is in the runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from statistics import fmean
from types import ModuleType
from typing import Any

import pytest
from conversations import settings
from programs import ROOT, program

from ttrl.rollout.workflows.conversation import Conversation

PAGE = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")
RECORD: dict[str, Any] = json.loads(
    (ROOT / "bench" / "results" / "agents.json").read_text(encoding="utf-8")
)
READER, SHIPPED = RECORD["runs"]["reader"], RECORD["runs"]["tiny-base"]


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """`bench/agents.py`."""
    with program("bench/agents.py") as found:
        yield found


def test_the_tables_have_the_figures_of_the_runs(bench: ModuleType) -> None:
    for model, runs in RECORD["runs"].items():
        assert bench.marked(bench.mark(model), [bench.table(RECORD, model)]) in PAGE
        assert all(set(seeds) == set("01234") for seeds in runs.values())
    assert set(RECORD["runs"]) == set(bench.MODELS)
    assert {"untrained", "TTRL", *bench.WORKFLOWS} <= set(READER) & set(SHIPPED)


def mean(run: str, score: str) -> float:
    return 100 * fmean(found["scores"][score] for found in READER[run].values())


def test_what_is_said_in_words_is_in_the_runs(bench: ModuleType) -> None:
    for name in bench.WORKFLOWS:
        assert mean("untrained", name) < mean("TTRL", name) < mean(name, name)
        rival = "maj@4" if name in ("debate 2x2", "mixture 3+1", "chain 3x1") else "maj@6"
        assert mean(name, name) < mean("TTRL", rival)
        assert all(run["curves"]["label/label_accuracy"] for run in READER[name].values())
    first, shared = "debate 2x2, first votes", "debate 2x2"
    singles = [run["scores"]["pass@1"] for run in READER[first].values()]
    assert sum(score < 0.6 for score in singles) == 3
    single = {n: fmean(r["scores"]["pass@1"] for r in SHIPPED[n].values()) for n in (first, shared)}
    assert abs(single[first] - single[shared]) < 0.02
    for name, runs in SHIPPED.items():
        for run in runs.values():
            assert all(run["scores"].get(w, 0) < 0.01 for w in bench.IN_TURNS)
            if name in bench.WORKFLOWS:
                assert max(run["curves"]["label/outcome_accuracy"]) < 0.5


def curve_of(runs: dict[str, Any], name: str, curve: str) -> float:
    """The mean of a figure over steps and seeds, in %."""
    return 100 * fmean(fmean(run["curves"][curve]) for run in runs[name].values())


def sentences(bench: ModuleType) -> list[str]:
    """What the page says, with its figures."""
    gains = {name: mean(name, name) - mean("TTRL", name) for name in bench.WORKFLOWS}
    least, most = min(gains, key=gains.__getitem__), max(gains, key=gains.__getitem__)
    seconds = [
        fmean(run["wall_s"] for run in READER[name].values()) for name in ("TTRL", *bench.WORKFLOWS)
    ]
    low, high = min(seconds[1:]), max(seconds[1:])
    right = "label/label_accuracy"
    label = {name: curve_of(SHIPPED, name, right) for name in SHIPPED if name != "untrained"}
    agreeing = curve_of(SHIPPED, "debate 2x2", "agents/reward/turn=1")
    first, own = "debate 2x2, first votes", "debate 2x2, per agent"
    of_reader = {name: curve_of(READER, name, right) for name in ("debate 2x2", first, own)}
    behind = mean("debate 2x2", "debate 2x2") - mean(own, own)
    return [
        f"{label[first]:.0f} % of the labels are right in the debate of two",
        f"{of_reader[first]:.0f} % of the labels are right over a run, where all turns elect "
        f"{of_reader['debate 2x2']:.0f} %",
        f"labels as good, {of_reader[own]:.0f} %, and ends {behind:.0f} points below the shared",
        f"{label['debate 2x2']:.0f} % of the labels are right in a debate of two, "
        f"{label['debate 3x2']:.0f} % in one of three, {label['chain 3x1']:.0f} % in a chain, "
        f"where TTRL alone has {label['TTRL']:.0f} % and mixtures, whose aggregators are few, "
        f"{label['mixture 3+1']:.0f} and {label['mixture 5+1']:.0f} %. Of the second round of the "
        f"debate of two {agreeing:.0f} % agree with the label, and no debate ends right.",
        f"from {gains[least]:.0f} points ({least}) to {gains[most]:.0f} ({most})",
        f"{mean('TTRL', 'maj@4'):.1f} of four answers and {mean('TTRL', 'maj@6'):.1f} of six",
        f"{seconds[0]:.0f} seconds, one in a workflow {low:.0f} to {high:.0f}",
        f"{bench.reader.STEPS} steps (`bench/reader.py`)",
    ]


def test_sentences_have_the_figures_of_the_runs(bench: ModuleType) -> None:
    text = " ".join(PAGE.split())
    assert [said for said in sentences(bench) if said not in text] == []


def test_its_own_workflow_is_one() -> None:
    (code,) = PAGE.partition("```python\n")[2].partition("```")[::2][:1]
    made: dict[str, Any] = {}
    exec(code, made)
    run = settings("single_turn", votes=10)
    held: Conversation = made["Editors"](run)
    assert held.calls == 5
