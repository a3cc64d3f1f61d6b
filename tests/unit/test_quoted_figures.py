"""Figures in the pages are those of the JSON that `bench/` has written.

A table is made again from its JSON, and compared row by row; a sentence is made with its figures,
and looked for. A number that was typed wrong, or of an earlier measurement, fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any

import pytest
from programs import ROOT, program

RESULTS = ROOT / "bench" / "results"
Rows = list[list[str]]


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def tables(page: str) -> list[Rows]:
    """All tables of a page, as cells, with their heads."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    rows = [[line for line in table.splitlines() if set(line) - set("|-: ")] for table in found]
    return [[[c.strip() for c in line.strip("|").split("|")] for line in table] for table in rows]


def table(page: str, *head: str) -> Rows:
    """The rows of the one table of a page with this head."""
    (found,) = (rows for rows in tables(page) if rows[0] == list(head))
    return found[1:]


def change(run: Any, score: str) -> str:
    return f"{100 * run['before'][score]:.1f} → {100 * run['after'][score]:.1f}"


def whole(values: Sequence[float]) -> str:
    return f"{min(values):.0f}\u2013{max(values):.0f}"


DEFAULT, COLLAPSE = (read(f"tiny_seeds_{name}")["seeds"] for name in ("default", "collapse"))


def gains(runs: dict[str, Any]) -> list[float]:
    return [100 * (run["after"]["pass@1"] - run["before"]["pass@1"]) for run in runs.values()]


# ---------------------------------------------------------------------------------------------
# Tables


def readme() -> Rows:
    first = DEFAULT["0"]
    return [
        [name, change(run, "pass@1"), change(run, "maj@16")]
        for name, run in (("training (unlabeled)", first), ("held out", first["held_out"]))
    ]


def seeds() -> Rows:
    scores = ("pass@1", "maj@16")
    return [
        [
            seed,
            *(change(run, score) for score in scores),
            *(change(run["held_out"], score) for score in scores),
            f"{run['wall_s']:.0f}",
        ]
        for seed, run in DEFAULT.items()
    ]


def collapse() -> Rows:
    return [
        [seed, change(run, "pass@1"), change(run, "maj@16"), change(run["held_out"], "pass@1")]
        for seed, run in COLLAPSE.items()
    ]


FORMS = {
    "vote/majority_ratio": "{:.2f}",
    "label/label_accuracy": "{:.2f}",
    "vote/distinct_answers": "{:.1f}",
    "vote/flip_rate": "{:.2f}",
}


def at(run: Any, metric: str, steps: Sequence[int]) -> list[str]:
    """A curve at some steps; of flips there are none in the first pass."""
    curve = run["curve"][metric]
    begin = run["steps"] - len(curve)
    return ["" if s <= begin else FORMS[metric].format(curve[s - 1 - begin]) for s in steps]


def collapsing() -> Rows:
    names = ("majority ratio", "label accuracy", "distinct answers")
    names = (*names, "labels flipped since the last visit")
    steps = (1, 4, 8, 16, 32, 56)
    return [[n, *at(COLLAPSE["0"], m, steps)] for n, m in zip(names, FORMS, strict=True)]


def healthy_and_not() -> Rows:
    return [
        [f"{name}: `{metric}`", *at(runs["0"], metric, (1, 8, 16, 32, 56))]
        for name, runs in (("healthy", DEFAULT), ("collapse", COLLAPSE))
        for metric in FORMS
        if metric != "label/label_accuracy"
    ]


def real_model() -> Rows:
    names = {"before": "before", "ttrl": "ttrl", "TRL": "TRL 1.16"}
    return [
        [
            shown,
            str(found.get("steps", "")),
            f"{found['training_s']:.0f}" if "training_s" in found else "",
            *(
                f"{found['scores'][half][score]:.1f}"
                for half in ("train", "held_out")
                for score in ("pass@1", "maj@16", "greedy")
            ),
        ]
        for name, shown in names.items()
        if (found := read("real_model")[name])
    ]


def agreement() -> Rows:
    found = read("agreement")
    own, vllm = (found[engine]["agreement"] for engine in ("transformers", "vllm"))
    rows = [(name, t) for name, by in own.items() for t in by]
    rows.sort(
        key=lambda row: (row[0] != "right", row[0] == "right" or own[row[0]][row[1]]["logits"])
    )
    cells = [(own[name][t], vllm[name][t]) for name, t in rows]
    return [
        [name, t, *(f"{c['logits']:.3f} ({c['mean']:.3f})" for c in pair)]
        for (name, t), pair in zip(rows, cells, strict=True)
    ]


def grading() -> Rows:
    names = {
        "by spelling alone": "spelling alone",
        "with computer algebra, first time": "with algebra, first time",
        "the same answers again": "with algebra, again",
    }
    found = read("grading")["results"]
    return [
        [
            name,
            f"{found[key]['groups_per_s']:.0f}",
            f"{found[key]['seconds']:.1f}",
            f"{found[key]['classes_per_group']:.2f}",
        ]
        for name, key in names.items()
    ]


def rollouts() -> Rows:
    return [
        [
            name,
            f"{c['tokens_per_s']:.0f} ({c['range'][0]:.0f}-{c['range'][1]:.0f})",
            f"{c['to_bare_vllm']:.2f}",
        ]
        for name, c in read("rollouts")["contenders"].items()
    ]


def sharded() -> Rows:
    phases = ("load", "update", "push", "export")
    return [
        [ranks, *(f"{by[p]['peak_mib']} / {by[p]['bound_mib']}" for p in phases)]
        for ranks, by in read("sharded_memory")["ranks"].items()
    ]


def end_to_end() -> Rows:
    form = "{median:.2f} ({min:.2f}-{max:.2f})".format_map
    score = "{median:.1f} ({min:.1f}-{max:.1f})".format_map
    parts = ("step_s", "rollout_s", "update_s")
    return [
        [
            name,
            *(form(found[part]) if part in found else "" for part in parts),
            score(found["pass@1"]),
            str(found["peak_mib"]),
        ]
        for name, found in read("end_to_end")["summary"].items()
    ]


def beside_load() -> Rows:
    return [
        [name, *(steps(runs) for runs in by_load.values())]
        for name, by_load in read("beside_load")["runs"].items()
    ]


def steps(runs: Sequence[Any]) -> str:
    found = [run["step_s"] for run in runs]
    return f"{median(found):.2f} ({min(found):.2f}-{max(found):.2f})"


def profile() -> Rows:
    now, then = (
        read("profile")["trees"][name]["by kind, per step"] for name in ("this", "f0a9d66")
    )
    return [
        [kind, *(f"{found[kind][what]:.0f}" for found in (now, then) for what in ("calls", "ms"))]
        for kind in sorted(now, key=lambda kind: -now[kind]["ms"])
    ]


def shared_rows() -> Rows:
    return [
        [
            name,
            *(str(found[key]) for key in ("prompt", "answer", "rows", "rows without sharing")),
            *(f"{found[key]:.2f}" for key in ("share", "keys per row")),
        ]
        for name, found in read("shared_rows")["shapes"].items()
    ]


COLLAPSE_HEAD = ("seed", "pass@1", "maj@16", "held out pass@1")
TABLES: list[tuple[str, tuple[str, ...], Callable[[], Rows]]] = [
    ("README.md", ("questions", "pass@1", "maj@16"), readme),
    ("docs/experiments.md", (*COLLAPSE_HEAD, "held out maj@16", "seconds"), seeds),
    ("docs/experiments.md", COLLAPSE_HEAD, collapse),
    ("docs/experiments.md", ("step", "1", "4", "8", "16", "32", "56"), collapsing),
    (
        "docs/experiments.md",
        (
            *("model", "steps", "seconds", "pass@1", "maj@16", "greedy"),
            *("held out pass@1", "held out maj@16", "held out greedy"),
        ),
        real_model,
    ),
    ("docs/metrics.md", ("", "step 1", "8", "16", "32", "56"), healthy_and_not),
    ("docs/models.md", ("engine", "temperature", "embedded", "vLLM"), agreement),
    (
        "bench/README.md",
        ("", "groups per second", "all 512, seconds", "classes per group"),
        grading,
    ),
    ("bench/README.md", ("", "tokens per second (range)", "to bare vLLM"), rollouts),
    (
        "bench/README.md",
        (
            "trainer",
            "seconds a step",
            "rollout",
            "update",
            "held-out pass@1 after it (%)",
            "peak MiB",
        ),
        end_to_end,
    ),
    (
        "bench/README.md",
        ("shape", "prompt", "answer", "rows", "without sharing", "share", "keys per row"),
        shared_rows,
    ),
    ("bench/README.md", ("ranks", "load", "update", "push", "export"), sharded),
    ("bench/README.md", ("operations", "calls", "ms", "calls then", "ms then"), profile),
    ("bench/README.md", ("threads", "alone", "beside busy loops"), beside_load),
]
"""Page, head of the table, what makes its rows."""


@pytest.mark.parametrize(("page", "head", "rows"), TABLES, ids=[row[2].__name__ for row in TABLES])
def test_a_table_has_the_figures_of_its_json(
    page: str, head: tuple[str, ...], rows: Callable[[], Rows]
) -> None:
    assert table(page, *head) == rows()


def test_the_kernels_tables_are_those_of_their_json() -> None:
    """`bench/kernels/report.py` writes them; contenders that did not run have no line."""
    case = re.compile(r"^\*\*(.*)\*\*\n\n((?:\|.*\n)+)", re.MULTILINE)
    names = ("kernels_criterion", "kernels_cpu")
    with program("bench/kernels/report.py") as report:
        written = [report.markdown(read(name)["runs"]) for name in names]
    made = [
        (title, re.sub(r"^.*\| \| \| \| \|\n", "", rows, flags=re.MULTILINE))
        for text in written
        for title, rows in case.findall(text)
    ]
    assert case.findall((ROOT / "bench" / "README.md").read_text(encoding="utf-8")) == made
    assert len(made) > 9


# ---------------------------------------------------------------------------------------------
# Sentences


def sentences() -> list[tuple[str, str]]:
    """(page, what it says)."""
    held_out = {seed: run["held_out"] for seed, run in DEFAULT.items()}
    second = {
        name: [100 * fmean(run["curve"]["vote/flip_rate"][:8]) for run in runs.values()]
        for name, runs in (("collapse", COLLAPSE), ("default", DEFAULT))
    }
    ends = [run["curve"]["vote/majority_ratio"][-1] for run in COLLAPSE.values()]
    again = [
        case["rows"][name]["ratio"]
        for name in ("ttrl_kernels", "plain PyTorch")
        for case in read("kernels_criterion_again")["runs"]
    ]
    page, ratio = read("report_page"), read("end_to_end")["times TRL"]
    beside = read("tiny_seeds_default")["beside"]
    faster = {
        phase: "{median:.1f} times ({min:.1f}-{max:.1f})".format_map(found)
        for phase, found in beside["times as fast"].items()
    }
    longer = [
        median(r["step_s"] for r in by_load["beside busy loops"])
        / median(r["step_s"] for r in by_load["alone"])
        for by_load in map(read("beside_load")["runs"].get, ("one thread", "two"))
    ]
    training = faster["training_s"].replace("times", "times as fast as it was then")
    real = read("real_model")
    words = {n: real[n]["scores"]["held_out"] for n in ("before", "ttrl")}
    held = [100 * beside["held out pass@1"][name] for name in ("this", "f0a9d66")]
    return [
        (
            "docs/experiments.md",
            f"is in step {real['TRL']['steps']} when that time is over, and ends it after "
            f"{real['TRL']['training_s']:.0f} seconds",
        ),
        (
            "docs/experiments.md",
            f"In {real['ttrl']['training_s']:.0f} seconds of sampling and updates single answers "
            f"to words that it was never trained on go from {words['before']['pass@1']:.1f} to "
            f"{words['ttrl']['pass@1']:.1f} % right.",
        ),
        (
            "docs/experiments.md",
            f"its greedy answers were {words['before']['greedy']:.1f} % right before, and are "
            f"{words['ttrl']['greedy']:.1f} % right after.",
        ),
        (
            "docs/experiments.md",
            f"is {training}, the whole command {faster['command_s']}. It ends as well: held-out "
            f"pass@1 {held[0]:.1f} now, {held[1]:.1f} then.",
        ),
        (
            "bench/README.md",
            f"it takes {longer[0]:.1f} times. Two have half of each core, which would make 2 "
            f"times; they take {longer[1]:.1f} times.",
        ),
        (
            "bench/README.md",
            "TRL's step takes {median:.1f} times as long ({min:.1f}-{max:.1f}).".format_map(ratio),
        ),
        (
            "README.md",
            f"pass@1 rises by {int(min(gains(DEFAULT)))} points or more, on held-out questions by "
            f"{int(min(gains(held_out)))} or more",
        ),
        ("docs/experiments.md", f"rises*, to {min(ends):.2f}\u2013{max(ends):.2f}"),
        (
            "docs/experiments.md",
            f"{whole(second['collapse'])} % of the labels changed in these runs, and "
            f"{whole(second['default'])} % in those of the default",
        ),
        (
            "bench/README.md",
            "gave {:.2f} and {:.2f} for `ttrl_kernels`, {:.2f} and {:.2f} for plain PyTorch".format(
                *again
            ),
        ),
        (
            "docs/report.md",
            f"a page of {page['page_bytes'] / 1e6:.1f} MB with all of them, written in "
            f"{page['writing_s']:.0f} s and opened in {median(page['ready_s']):.1f} s",
        ),
    ]


@pytest.mark.parametrize("number", range(len(sentences())))
def test_a_sentence_has_the_figures_of_its_json(number: int) -> None:
    page, said = sentences()[number]
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert said in text
