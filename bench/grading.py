"""How many groups of answers the grader sorts per second, by spelling alone and with algebra.

    .venv/bin/python bench/grading.py                   512 questions x 64 answers
    .venv/bin/python bench/grading.py --questions 8     a quick look

The answers are generated: per question one true answer in the spellings that models use, wrong ones
near it, and some text. Prints a table, and writes ``bench/results/grading.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from machine import ROOT, describe
from rich.console import Console
from rich.table import Table

from ttrl.answers import Grader
from ttrl.rewards import majority_vote
from ttrl.settings import AnswerSettings

RIGHT_SHARE = 0.4
"""Answers that are right, as a model about to be trained gives them."""


def spellings(rng: random.Random, kind: str) -> list[str]:
    """One random value in several spellings."""
    a, b, c = rng.randint(2, 40), rng.randint(2, 9), rng.choice([2, 3, 5, 7, 11, 13])
    match kind:
        case "integer":
            return [
                str(a),
                f"{a}.0",
                f"${a}$",
                f"x={a}",
                rf"{a}\text{{ cm}}",
                rf"\frac{{{2 * a}}}2",
            ]
        case "fraction":
            return [
                rf"\frac{{{a}}}{{{b}}}",
                rf"\dfrac{{{a}}}{{{b}}}",
                f"{a}/{b}",
                rf"\frac {a} {b}",
            ]
        case "root":
            return [rf"{a}\sqrt{{{c}}}", rf"{a} \sqrt{c}", rf"\sqrt{{{a * a * c}}}"]
        case "pi":
            return [rf"\frac{{{a}\pi}}{{{b}}}", rf"\frac{{{a}}}{{{b}}}\pi", rf"{a}\pi/{b}"]
        case "polynomial":
            return [f"x^2+{a}x+{b}", f"x^2 + {a}x + {b}", f"x(x+{a})+{b}", f"{b}+{a}x+x^2"]
        case "pair":
            return [f"({a},{b})", rf"\left({a}, {b}\right)", f"({a}.0, {b})"]
        case "set":
            return [f"{a}, {b + 50}", rf"\{{{b + 50}, {a}\}}", f"x={a}, x={b + 50}"]
        case _:
            return [rf"\text{{{w}}}" for w in (rng.choice(["east", "west", "even", "ellipse"]),)]


KINDS = {
    "integer": 60,
    "fraction": 12,
    "root": 8,
    "pi": 5,
    "polynomial": 5,
    "pair": 4,
    "set": 3,
    "word": 3,
}
"""Weights near those of MATH-500's answers."""


def group(rng: random.Random, answers: int) -> list[str | None]:
    """One question's answers: right ones, wrong ones of the same kind, other ones, abstentions."""
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    right = spellings(rng, kind)
    wrong = [spelling for _ in range(8) for spelling in spellings(rng, kind)]
    other = [spelling for k in KINDS for spelling in spellings(rng, k)]
    found: list[str | None] = []
    for _ in range(answers):
        drawn = rng.random()
        if drawn < RIGHT_SHARE:
            found.append(rng.choice(right))
        else:
            found.append(None if drawn > 0.92 else rng.choice(other if drawn > 0.85 else wrong))
    return found


def measure(grader: Grader, groups: list[list[str | None]]) -> dict[str, float]:
    """Vote on every group, one after the other."""
    started = time.perf_counter()
    votes = [majority_vote(answers, grader) for answers in groups]
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 3),
        "groups_per_s": round(len(groups) / seconds, 1),
        "classes_per_group": round(sum(len(v.counts) for v in votes) / len(votes), 2),
        "undecided_share": sum(v.undecided for v in votes) / sum(len(g) for g in groups),
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=512)
    parser.add_argument("--answers", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "grading.json")
    arguments = parser.parse_args()

    rng = random.Random(arguments.seed)
    groups = [group(rng, arguments.answers) for _ in range(arguments.questions)]
    results: dict[str, dict[str, float]] = {}
    with Grader(AnswerSettings(symbolic=False)) as grader:
        results["spelling alone"] = measure(grader, groups)
    with Grader() as grader:
        started = time.perf_counter()
        grader.equivalent(r"\sqrt{4}", "2")
        results["first worker's start"] = {"seconds": round(time.perf_counter() - started, 3)}
        results["with algebra, first time"] = measure(grader, groups)
        results["with algebra, again"] = measure(grader, groups)

    console = Console()
    title = f"{arguments.questions} questions x {arguments.answers} answers"
    columns = ("seconds", "groups_per_s", "classes_per_group", "undecided_share")
    table = Table("", *columns, title=title)
    for name, row in results.items():
        table.add_row(name, *(f"{row[c]:g}" if c in row else "" for c in columns))
    console.print(table)
    record = {
        "machine": describe(),
        "questions": arguments.questions,
        "answers": arguments.answers,
        "seed": arguments.seed,
        "results": results,
    }
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {arguments.output}")


if __name__ == "__main__":
    main()
