"""Tables of evaluations, cell by cell, and as Markdown and LaTeX."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from results import result
from rich.console import Console

from ttrl.report.evaluation_tables import gains_table, matrix_table, scores_table
from ttrl.report.tables import TextTable
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError


def test_scores_by_level() -> None:
    found = result(
        "m", [0.0, 1.0, 1.0, 1.0], levels=["[/]", "2", "2", "2"], response_tokens=[4, 6, 6, 8]
    )
    table = scores_table(found)
    assert table.title == "m on 4 questions of q.jsonl, in %"
    assert table.columns == ("", "all (4)", "level=2 (3)", "level=[/] (1)")
    assert table.rows == (
        ("pass@1", "75.0 ± 49.0", "100.0", "0.0"),
        ("response tokens", "6.0 ± 1.6", "6.7", "4.0"),
    )


def test_gains_absolute_and_relative() -> None:
    before = result("base", [0.0, 0.2, 0.6, 0.8], maj_4=[0.0, 0.0, 1.0, 0.0])
    after = result("new", [0.1, 0.3, 0.7, 1.0], maj_4=[0.0, 1.0, 1.0, 1.0])
    table = gains_table(before, after)
    assert table.rows == (
        ("pass@1", "40.0", "52.5", "+12.5 ± 4.9", "+31.2 %"),
        ("maj@4", "25.0", "75.0", "+50.0 ± 56.6", "+200.0 %"),
    )
    assert table.notes[1] == "Upper bound, maj@4 before: 25.0; pass@1 after is above it, 52.5."
    none = gains_table(result("base", [0.0]), result("new", [0.5]))
    assert none.rows == (("pass@1", "0.0", "50.0", "+50.0", ""),)


def test_what_was_sampled_in_another_way_is_no_pair() -> None:
    cold = result("base", [0.0], sampling={"temperature": 0.6})
    with pytest.raises(UserError, match=r"with temperature = 0\.6, new with 1: measure both"):
        gains_table(cold, result("new", [0.5], sampling={"temperature": 1.0}))


@pytest.fixture
def trained(tmp_path: Path) -> list[str]:
    """Three models: two of runs that differ in their seed, one that was trained with labels."""
    changes = {
        "a0": ["seed=0"],
        "a1": ["seed=1"],
        "labels": ["reward.labels=ground_truth", "reward.allow_ground_truth=true"],
    }
    for name, overrides in changes.items():
        settings = load_settings("tiny-arithmetic", overrides=[*overrides, f"name={name}"])
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text(settings.to_toml())
    return [str(tmp_path / name / "model") for name in changes]


def test_models_by_data_sets(trained: list[str]) -> None:
    own, other = "arithmetic:train", "q.jsonl"
    base = [
        result("base", [0.2, 0.4], own, maj_16=[0.0, 1.0]),
        result("base", [0.1], other, maj_16=[0.0]),
    ]
    values = [(0.8, 1.0, 0.5), (0.6, 0.8, 0.3), (1.0, 1.0, 0.2)]
    measured = [
        found
        for model, (x, y, z) in zip(trained, values, strict=True)
        for found in (result(model, [x, y], own), result(model, [z], other))
    ]
    table = matrix_table(measured, base)
    assert table.columns == ("", own, other)
    assert table.rows == (
        ("base (before)", "30.0", "10.0"),
        (trained[0], "90.0 (+60.0) *", "50.0 (+40.0)"),
        (trained[1], "70.0 (+40.0) *", "30.0 (+20.0)"),
        (f"{trained[2]} (trained with labels)", "100.0 (+70.0) *", "20.0 (+10.0)"),
        ("mean ± sd of seeds 0, 1", "80.0 ± 14.1", "40.0 ± 14.1"),
        ("upper bound: maj@16 before", "50.0", "0.0"),
    )
    assert table.notes == ("* Trained on these questions; the others are out of domain.",)


TABLE = TextTable("50% of [x]", ("", "a_b"), (("c|d → e", "1 ± 2"),), ("x*",))


def test_markdown() -> None:
    assert TABLE.markdown() == (
        "**50% of \\[x\\]**\n\n| | a\\_b |\n| --- | ---: |\n| c\\|d → e | 1 ± 2 |\n\nx\\*\n"
    ).replace("| |", "|  |")


def test_latex() -> None:
    assert TABLE.latex() == (
        "\\begin{table}\\caption{50\\% of [x]}\n"
        "\\begin{tabular}{lr}\n"
        "\\toprule  & a\\_b \\\\ \\midrule\n"
        "c|d $\\rightarrow$ e & 1 $\\pm$ 2 \\\\\n"
        "\\bottomrule\n\\end{tabular}\n\\par x*\n\\end{table}\n"
    )


def test_the_screen_shows_names_as_they_are_written() -> None:
    console = Console(file=io.StringIO(), width=80)
    TABLE.show(console)
    shown = console.file.getvalue()
    assert "50% of [x]" in shown
    assert "c|d → e" in shown
