"""What a run shows: its tables, and its lines in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from ttrl.report.display import Display, duration, result_table
from ttrl.report.tables import TextTable
from ttrl.settings.recipe import load_settings

# ---------------------------------------------------------------------------------------------
# Tables


def shown(table: Table) -> list[list[str]]:
    """The rows of a table, cells stripped, as a user would see them."""
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(table)
    rows = [line for line in console.file.getvalue().splitlines() if {"│", "┃"} & set(line)]
    return [[cell.strip() for cell in row.replace("┃", "│").strip("│").split("│")] for row in rows]


def summary(before: dict, after: dict, held_out: tuple[dict, dict] = ({}, {})) -> dict:
    return {
        "before": before,
        "after": after,
        "held_out": {"before": held_out[0], "after": held_out[1]},
    }


def test_results_are_percents_before_and_after() -> None:
    before = {"pass@1": 0.125, "maj@4": 0.5, "abstention_share": 0.3, "response_tokens": 12.0}
    after = {"pass@1": 0.8756, "maj@4": 1.0, "abstention_share": 0.1, "response_tokens": 14.0}
    held_out = ({"pass@1": 0.0, "maj@4": 0.25}, {"pass@1": 0.5, "maj@4": 0.75})
    assert shown(result_table(summary(before, after, held_out))) == [
        ["questions", "pass@1", "maj@4"],
        ["training (unlabeled)", "12.5 → 87.6", "50.0 → 100.0"],
        ["held out", "0.0 → 50.0", "25.0 → 75.0"],
    ]


def test_results_by_level() -> None:
    before = {"pass@1": 0.5, "pass@1/level=1": 0.75, "pass@1/level=2": 0.25}
    after = {"pass@1": 1.0, "pass@1/level=1": 1.0, "pass@1/level=2": 1.0}
    assert shown(result_table(summary(before, after))) == [
        ["questions", "pass@1"],
        ["training (unlabeled)", "50.0 → 100.0"],
        ["level=1", "75.0 → 100.0"],
        ["level=2", "25.0 → 100.0"],
    ]


def test_results_of_two_sets_with_different_levels() -> None:
    train = {"pass@1": 0.5, "pass@1/level=1": 0.5}
    held_out = {"pass@1": 0.25, "pass@1/level=9": 0.25}
    assert shown(result_table(summary(train, train, (held_out, held_out)))) == [
        ["questions", "pass@1"],
        ["training (unlabeled)", "50.0 → 50.0"],
        ["level=1", "50.0 → 50.0"],
        ["held out", "25.0 → 25.0"],
        ["level=9", "25.0 → 25.0"],
    ]


@pytest.mark.parametrize("level", ["[/]", "[red]", "a/b", "a/", "a@b", "[link=x]y"])
def test_a_level_is_shown_as_it_is_written(level: str) -> None:
    """It comes from the data set, and may look like markup or like our own names."""
    scores = {"pass@1": 0.5, "response_tokens": 7.0}
    scores |= {f"{name}/level={level}": value for name, value in scores.items()}
    assert shown(result_table(summary(scores, scores))) == [
        ["questions", "pass@1"],
        ["training (unlabeled)", "50.0 → 50.0"],
        [f"level={level}", "50.0 → 50.0"],
    ]


def test_results_without_an_answer_key() -> None:
    assert shown(result_table(summary({}, {}))) == [["questions"]]


# ---------------------------------------------------------------------------------------------
# The screen


def test_a_log_without_a_terminal_holds_one_line_per_step() -> None:
    file = io.StringIO()
    display = Display(Console(file=file, width=40))
    with display.training(12), display.bar("sampling", 3) as bar:
        bar.advance("half way")
        display.step(3, 12, {"vote/majority_ratio": 0.5, "policy/grad_norm": 1.234, "other": 1})
        display.step(4, 12, {"eval/train/pass@1": 0.5, "eval/train/pass@1/level=1": 0.25})
        display.rejected(["data.jsonl:line 3: [/red] is empty"])
    assert file.getvalue().splitlines() == [
        "step  3/12  majority ratio 0.50",
        "step  4/12",
        "measured after step 4, train: pass@1 50.0 (%)",
        "rejected data.jsonl:line 3: [/red] is empty",
    ]


def test_the_time_to_come_is_said_once_after_the_first_step() -> None:
    file = io.StringIO()
    display = Display(Console(file=file, width=40))
    for step in (1, 2):
        display.step(step, 100, {"time/rollout_s": 3.0, "time/update_s": 2.5})
    assert file.getvalue().splitlines() == [
        "step   1/100  5.5 s",
        "about 9 min for the 99 steps to come, 5.5 s each",
        "step   2/100  5.5 s",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(4.4, "4 s"), (99.4, "99 s"), (100, "2 min"), (5999, "100 min"), (6000, "1.7 h")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_what_was_measured_before_training() -> None:
    file = io.StringIO()
    Display(Console(file=file)).measured(
        {
            "step": 0,
            "eval/train/pass@1": 0.46449,
            "eval/train/maj@16": 0.773,
            "eval/train/response_tokens": 40.0,
            "eval/held_out/greedy": 1.0,
        }
    )
    assert file.getvalue().splitlines() == [
        "measured before training, train: pass@1 46.4  maj@16 77.3 (%)",
        "measured before training, held_out: greedy 100.0 (%)",
    ]


def test_every_line_of_a_run_fits_80_columns() -> None:
    file = io.StringIO()
    display = Display(Console(file=file, width=80))
    figures = {
        "vote/majority_ratio": 1.0,
        "label/label_accuracy": 1.0,
        "vote/abstention_share": 1.0,
    }
    scores = {"eval/held_out/pass@1": 1.0, "eval/held_out/pass@16": 1.0, "eval/held_out/maj@16": 1}
    display.step(100, 100, {**figures, **scores, "time/update_s": 1234.5})
    settings = load_settings("tiny-arithmetic")
    sizes = {"train": 128, "held_out": 128}
    display.header(settings, 56, sizes, "8 ranks, each on NVIDIA H100 80GB HBM3")
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert (
        lines[0]
        == "step 100/100  majority ratio 1.00  label accuracy 1.00  abstained 100%  1234.5 s"
    )
    assert lines[2:5] == [
        "model      tiny-base (float32)",
        "questions  128 of arithmetic:train; held out: 128 of arithmetic:held_out",
        "steps      56, of 16 questions with 64 votes, by transformers",
    ]


def test_what_is_said_has_no_pictures() -> None:
    screen = io.StringIO()
    Display(Console(file=screen)).note("rejected arithmetic:train: [b]line 3[/b]")
    assert screen.getvalue() == "rejected arithmetic:train: [b]line 3[/b]\n"


def test_a_bar_is_shown_where_nothing_is_trained() -> None:
    console = Console(width=100, file=io.StringIO(), force_terminal=True)
    display = Display(console)
    with display.bar("scoring", 3) as outer:
        outer.advance()
        with display.bar("inner", 2):
            display._progress.refresh()
        assert display._progress.live.is_started  # the inner one has not ended the outer one's
    assert not display._progress.live.is_started
    written = console.file.getvalue()
    assert "scoring" in written and "1/3" in written and "inner" in written
    log = Console(width=100, file=io.StringIO())
    with Display(log).bar("scoring", 3) as bar:
        bar.advance()
    assert log.file.getvalue() == ""


@pytest.mark.parametrize(
    ("recipe", "changed", "expected"),
    [
        (
            "tiny-self-posed",
            [],
            "its own, begun with nothing; held out: 128 of arithmetic:held_out",
        ),
        ("tiny-stream", ["data.held_out=none"], "those of standard input"),
        ("tiny-stream", ["data.held_out=none", "data.train=http"], "those that are sent"),
        ("tiny-stream", ["data.held_out=none", "data.train=a.jsonl"], "a.jsonl"),
    ],
)
def test_where_questions_come_from_is_said_in_words(
    recipe: str, changed: list[str], expected: str
) -> None:
    file = io.StringIO()
    settings = load_settings(recipe, overrides=changed)
    sizes = {"train": 0, "held_out": 128}
    Display(Console(file=file, width=80)).header(settings, None, sizes, "CPU")
    line = file.getvalue().splitlines()[1]
    assert line == f"questions  {expected}"
    assert len(line) <= 80


def test_what_would_control_the_terminal_is_shown_by_its_code() -> None:
    out = io.StringIO()
    Display(Console(file=out, width=80)).note("stopped: \x1b[2J\u202e\x07, of\xa0two\nlines")
    TextTable("\x1b[31mt", ("", "\x07"), (("a\x1bb", "c"),), ("n\x1b",)).show(Console(file=out))
    assert "stopped: U+001B[2JU+202EU+0007, of\xa0two\nlines" in out.getvalue()
    assert "aU+001Bb" in out.getvalue() and not set("\x1b\x07\u202e") & set(out.getvalue())
