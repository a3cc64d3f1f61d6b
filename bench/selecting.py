"""Measure what rules choose among 64 answers, and what stopping early saves, over several seeds.

    .venv/bin/python bench/selecting.py           all that is missing; tables of docs/selecting.md
    .venv/bin/python bench/selecting.py --show    run nothing
    .venv/bin/python bench/selecting.py --show --write    and write them there

`ttrl eval --select` on the embedded task, with all answers, where stopping early is replayed in
random orders; and with ``--stop-early``, which does not sample the rest. Each seed has one thread,
and is kept in ``bench/results/selecting.json`` at once; it is not made again. Seconds are not kept;
what the command costs is `bench/selection.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kept_runs import KeptRuns, command_line, counted, spread, ttrl
from machine import ROOT
from pages import marked, write_into
from rich.console import Console

from ttrl.report.tables import TextTable

RESULTS = ROOT / "bench" / "results" / "selecting.json"
PAGE = ROOT / "docs" / "selecting.md"
CHOSEN, STOPPED = "bench/selecting.py: rules", "bench/selecting.py: stops"
"""The tables' marks in the page."""
MODEL, DATA, SAMPLES, WINDOW = "tiny-base", "arithmetic:held_out", 64, 8
RULES = ("majority", "weighted", "best-of-n", "borda", "self-certainty", "deepconf")
NUMBERS = (1, 4, 16, 64)
"""Of how many answers the table says what is right."""
STRICT = ["--set", "selection.confidence=lowest", "--set", "selection.warm_up_keep=0.1"]
"""DeepConf that breaks off most."""
ALL_TOKENS = ["--set", "selection.top_logprobs=258"]
STOPS = {
    "vote": ("majority", []),
    "deepconf": ("deepconf", []),
    "deepconf, strict": ("deepconf", STRICT),
}
"""Way to stop -> its rule, and its settings."""


def main() -> None:
    """Run what is missing, print, write."""
    parser = command_line(__doc__, RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the page's tables")
    arguments = parser.parse_args()
    made_with = {"data": DATA, "samples": SAMPLES, "window": WINDOW, "rules": RULES}
    kept, console = KeptRuns(arguments.out, {**made_with, "strict": STRICT}), Console(stderr=True)
    record = kept.record
    if not arguments.show:
        wanted = {(MODEL, seed): (MODEL, seed) for seed in arguments.seeds}
        kept.complete(run, wanted, arguments.jobs, console)
    for name, table in ((CHOSEN, rules_table(record)), (STOPPED, stops_table(record))):
        print(marked(name, [table]))
        if arguments.write:
            write_into(PAGE, name, [table])


def run(model: str, seed: int) -> dict[str, Any]:
    """Return what a seed's answers say, and what is sampled where sampling stops early."""
    common = ["eval", model, DATA, "--recipe", "tiny-arithmetic"]
    for change in (f"evaluation.samples={SAMPLES}", f"selection.window={WINDOW}", f"seed={seed}"):
        common += ["--set", change]

    with tempfile.TemporaryDirectory() as place:

        def of(*words: str) -> dict[str, Any]:
            (result,) = ttrl(place, *common, *words)["results"]
            return dict(result)

        rules = ["--reward-model", "tiny-prm", "--select", ",".join(RULES)]
        whole = of(*rules, "--save-samples", "all.jsonl")["selection"]
        strict = of("--select", "deepconf", "--from-samples", "all.jsonl", *STRICT)["selection"]
        certain = of("--select", "self-certainty", *ALL_TOKENS)["selection"]
        online = {
            name: of("--select", rule, "--stop-early", *words)
            for name, (rule, words) in STOPS.items()
        }
    (last,) = strict["stops"]
    stops = {stop["name"]: stop for stop in whole["stops"]} | {"deepconf, strict": last}
    return {
        "tokens_per_answer": whole["tokens_per_answer"],
        "right": {
            curve["name"]: {str(p["answers"]): p["accuracy"]["value"] for p in curve["points"]}
            for curve in whole["curves"]
        },
        "right_by_all_tokens": certain["curves"][0]["points"][-1]["accuracy"]["value"],
        "replayed": {name: _replayed(stop) for name, stop in stops.items()},
        "online": {
            name: {score: found["means"][score]["value"] for score in found["means"]}
            for name, found in online.items()
        },
    }


def _replayed(stop: Mapping[str, Any]) -> dict[str, float]:
    (point,) = stop["points"]
    return {
        "right": point["accuracy"]["value"],
        "answers": point["answers"],
        "tokens": point["tokens"],
        "gain": point["gain"]["value"],
    }


def seeds_of(record: dict[str, Any]) -> list[Mapping[str, Any]]:
    """Return what every seed has found."""
    return list(record["runs"][MODEL].values())


def rules_table(record: dict[str, Any]) -> TextTable:
    """Make the table of what each rule chooses."""
    seeds = seeds_of(record)
    rows = [
        (
            rule,
            *(spread([100 * seed["right"][rule][str(n)] for seed in seeds]) for n in NUMBERS),
        )
        for rule in RULES
    ]
    every = spread([100 * seed["right_by_all_tokens"] for seed in seeds])
    rows.insert(RULES.index("self-certainty") + 1, ("of all tokens", "", "", "", every))
    title = f"{MODEL} on {DATA}, {counted(record, MODEL)}: right, in %, of so many answers"
    return TextTable(title, ("", *map(str, NUMBERS)), tuple(rows))


def saved(seed: Mapping[str, Any], kind: str, name: str) -> float:
    """Return the share of the tokens of all answers that stopping saves, in %."""
    return 100 - 100 * float(seed[kind][name]["tokens"]) / (SAMPLES * seed["tokens_per_answer"])


def stops_table(record: dict[str, Any]) -> TextTable:
    """Make the table of ways to stop early: replayed in random orders, and with the rest left out.

    Both are of the same answers.
    """
    seeds = seeds_of(record)
    rows = [(name, kind, *_cells(seeds, kind, name)) for name in STOPS for kind in KINDS]
    title = f"{MODEL} on {DATA}, {counted(record, MODEL)}, {SAMPLES} answers at most"
    return TextTable(
        title, ("", "", "right, in %", "answers begun", "tokens saved, %"), tuple(rows)
    )


KINDS = ("replayed", "online")


def _cells(seeds: Sequence[Mapping[str, Any]], kind: str, name: str) -> list[str]:
    of: list[Callable[[Mapping[str, Any]], float]] = [
        lambda seed: 100 * seed[kind][name]["right"],
        lambda seed: seed[kind][name]["answers"],
        lambda seed: saved(seed, kind, name),
    ]
    return [spread([value(seed) for seed in seeds]) for value in of]


if __name__ == "__main__":
    main()
