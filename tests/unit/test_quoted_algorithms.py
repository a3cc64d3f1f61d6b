"""What docs/experiments.md says of algorithms, losses, advantages and estimators is in the JSON.

Tables are made again as `bench/algorithms.py` makes them; what the page says in words is asked of
the runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from statistics import fmean
from types import ModuleType
from typing import Any

import pytest
from programs import ROOT, program

PAGE = ROOT / "docs" / "experiments.md"
RUNS: dict[str, dict[str, Any]] = json.loads(
    (ROOT / "bench" / "results" / "algorithms.json").read_text(encoding="utf-8")
)["runs"]
HEADS = {
    "algorithms": "algorithm",
    "losses": "loss",
    "advantages": "advantages",
    "estimators": "estimator",
    "hard": "on hard questions",
}
"""Tables -> what stands over the first column of each."""


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """`bench/algorithms.py`."""
    with program("bench/algorithms.py") as found:
        yield found


def after(bench: ModuleType, table: str, variant: str, seeds: str = "012") -> list[float]:
    """The pass@1 of each seed after training, in %."""
    found = RUNS[bench.key_of(bench.TABLES[table][variant])]
    return [100 * found[seed]["after"]["pass@1"] for seed in seeds]


@pytest.mark.parametrize("name", HEADS)
def test_a_table_has_the_figures_of_its_runs(name: str, bench: ModuleType) -> None:
    head = f"| {' | '.join((HEADS[name], *bench.HEAD))} |"
    _, found, rest = PAGE.read_text(encoding="utf-8").partition(f"{head}\n|")
    assert found
    lines = rest.partition("\n\n")[0].splitlines()[1:]
    assert [[c.strip() for c in line.strip("|").split("|")] for line in lines] == bench.rows(
        name, RUNS
    )
    assert len(lines) == len(bench.TABLES[name])


def test_only_seeds_that_all_variants_have_are_compared(bench: ModuleType) -> None:
    run = {
        "after": {"pass@1": 0.5, "pass@16": 1.0},
        "curves": {
            "vote/majority_ratio": [0.1, 0.2, 0.6],
            "label/label_accuracy": [0.9],
            "policy/entropy": [],
        },
    }
    other = {"after": {"pass@1": 0.7, "pass@16": 1.0}, "curves": run["curves"]}
    recipe, ppo, _ = map(bench.key_of, bench.TABLES["algorithms"].values())
    runs = {recipe: {"0": run, "1": other, "2": other}, ppo: {"0": run, "1": other}}
    shown = ["2", "60.0 (50.0-70.0)", "100.0 (100.0-100.0)", "60.0 (60.0-60.0)"]
    shown += ["90.0 (90.0-90.0)", "none"]
    assert bench.rows("algorithms", runs) == [["GRPO", *shown], ["PPO", *shown]]


def test_what_is_said_of_grpo_ppo_and_prime(bench: ModuleType) -> None:
    """GRPO and PPO differ by less than half a point; PRIME is below GRPO on every seed."""
    grpo, ppo, prime = (
        after(bench, "algorithms", name, "01234") for name in ("GRPO", "PPO", "PRIME")
    )
    assert abs(fmean(grpo) - fmean(ppo)) < 0.5
    assert all(theirs < ours for theirs, ours in zip(prime, grpo, strict=True))


def test_what_is_said_in_words_is_in_the_runs(bench: ModuleType) -> None:
    """All but the figures themselves: those of `sentences`."""
    losses = {name: after(bench, "losses", name) for name in bench.TABLES["losses"]}
    risky = ("no clip", "CISPO", "SAPO", "DPPO-KL")
    for name in losses:
        found = RUNS[bench.key_of(bench.TABLES["losses"][name])]
        low = [seed for seed, value in zip("012", losses[name], strict=True) if value < 69]
        labels = {s: bench.last_pass(found[s]["curves"]["label/label_accuracy"]) for s in "012"}
        assert len(low) == (name in risky)
        assert all(labels[seed] < 0.8 for seed in low)
    assert min(losses, key=lambda n: max(losses[n]) - min(losses[n])) == "GSPO"
    assert max(losses, key=lambda n: fmean(losses[n])) == "GSPO"
    hard = {name: fmean(after(bench, "hard", name)) for name in bench.TABLES["hard"]}
    assert all(hard["ground truth"] - hard[name] < 1 for name in ("verified", "scope"))
    updates = RUNS[bench.key_of(bench.TABLES["advantages"]["pass_at_k"])]
    assert all(run["curves"]["policy/entropy"] == [] for run in updates.values())


def sentences(bench: ModuleType) -> list[str]:
    """What the page says, with its figures."""

    def mean(table: str, variant: str, seeds: str = "012") -> float:
        return fmean(after(bench, table, variant, seeds))

    def first(table: str, variant: str, curve: str, seeds: str) -> float:
        found = RUNS[bench.key_of(bench.TABLES[table][variant])]
        return fmean(found[seed]["curves"][curve][0] for seed in seeds)

    grpo, ppo, prime = (mean("algorithms", name, "01234") for name in ("GRPO", "PPO", "PRIME"))
    recipe, hard = (RUNS[bench.key_of(bench.TABLES[t]["majority"])] for t in ("estimators", "hard"))
    before, before_hard = (
        fmean(100 * run["before"]["pass@1"] for run in runs.values()) for runs in (recipe, hard)
    )
    alike = [mean("advantages", name) for name in ("mean", "rloo", "opo", "reinforce_pp_baseline")]
    single, several = mean("advantages", "mean_std"), mean("losses", "PPO's clip")
    kl = after(bench, "losses", "KL 0.01")
    assert round(max(kl) - min(kl)) == 6
    gspo = after(bench, "losses", "GSPO")
    labels = 100 * first("hard", "majority", "label/label_accuracy", "012")
    entropy = first("algorithms", "GRPO", "policy/entropy", "01234")
    return [
        f"Before training, pass@1 is {before:.1f}.",
        f"PRIME ends {grpo - prime:.1f} points below GRPO and {ppo - prime:.1f} below PPO",
        f"Entropy falls alike, from {entropy:.3f} to about 0.04",
        f"pass@1 is {before_hard:.1f}, and {labels:.0f} % of the first step's labels are right",
        f"on majorities the model ends at {mean('estimators', 'majority'):.1f}, on reference "
        f"answers at {mean('estimators', 'ground truth'):.1f}; on the harder questions at "
        f"{mean('hard', 'majority'):.1f} and {mean('hard', 'ground truth'):.1f}.",
        f"end between {min(alike):.1f} and {max(alike):.1f}.",
        f"and ends {single - mean('advantages', 'remax'):.1f} below `mean_std`",
        f"four of them end at {several:.1f} where one ends at {single:.1f}.",
        f"{fmean(gspo):.1f}, and no seed below {min(gspo):.1f}, with 99 % of the labels right",
        f"`restrain` ends at {mean('estimators', 'restrain'):.1f}, on the harder questions at "
        f"{mean('hard', 'restrain'):.1f}, `scrl` at {mean('estimators', 'scrl'):.1f} and "
        f"{mean('hard', 'scrl'):.1f}.",
        f"Random rewards end at {mean('estimators', 'random'):.1f}.",
        f"the majority ends at {mean('estimators', 'high rate: majority'):.1f}; the guard",
        f"do not save it either ({mean('estimators', 'high rate: teacher (start)'):.1f}).",
    ]


def test_sentences_have_the_figures_of_the_runs(bench: ModuleType) -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert [said for said in sentences(bench) if said not in text] == []
