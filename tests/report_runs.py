"""Runs with answers, made up: as long, and as hostile, as a report must bear."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttrl.report.results import EvaluationResult, QuestionScores, results_json
from ttrl.report.run_record import RunRecord, read_run
from ttrl.settings.recipe import load_settings

HOSTILE = (
    "</script><script>window.broken = 1</script>",
    "<!-- <script> --!>",
    "<img src=x onerror='window.broken = 1'>",
    "\"'><svg/onload=window.broken=1>",
    "javascript:window.broken=1",
    "[x](javascript:window.broken=1) ![y](http://192.0.2.1/x.png)",
    "null \x00 bell \x07 escape \x1b[31mred\x1b[0m",
    "lone \ud800 and \udfff, whole \U0001f600",
    "turned \u202egnirts\u202c and \u2067more\u2069",
    "zero\u200bwidth\u200djoiners \ufeff",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "&lt;b&gt; &amp; &#x3C;script&#x3E;",
    r"$\href{javascript:window.broken=1}{x}$ and \(\text{<script>window.broken=1</script>}\)",
    r"$\style{background:url(http://192.0.2.1/)}{x}$ $\class{skip}{y}$ \unicode{x41}",
    r"$\newcommand{\a}{\b\b}\newcommand{\b}{\a\a}\a$",
    "$" + "{" * 240 + "x" + "}" * 240 + "$",
    "$" + r"\frac" * 90 + "$",
    "__proto__",
    "constructor",
    "price $5 and $6, formula $\\frac{1}{2}$ and \\[x^2 \\le 3\\]",
)
"""What a model may write."""


def answered(text: str, answer: str | None, reward: float = 0.0, cut: bool = False) -> Any:
    """A completion as `rollouts/` has it."""
    return {
        "text": text,
        "answer": answer,
        "reward": reward,
        "tokens": len(text) // 4 + 1,
        "finish_reason": "length" if cut else "stop",
    }


def asked(
    question: str, prompt: str, label: str | None, answers: Sequence[Any], undecided: int = 0
) -> Any:
    """A question's line, whose label is the majority of the answers."""
    counts = Counter(answer["answer"] for answer in answers if answer["answer"] is not None)
    votes = counts[label] if label is not None else 0
    return {
        "question": question,
        "prompt": prompt,
        "label": label,
        "majority_ratio": votes / len(answers),
        "tied": votes > 0 and list(counts.values()).count(votes) > 1,
        "undecided": undecided,
        "completions": list(answers),
    }


def recorded_run(
    path: Path,
    rollouts: Mapping[int, Sequence[Any]],
    steps: Sequence[Mapping[str, Any]],
    scores: Mapping[int, Mapping[str, tuple[Sequence[float], Sequence[float]]]] | None = None,
    overrides: Sequence[str] = (),
    summary: Mapping[str, Any] | None = None,
) -> RunRecord:
    """A run's folder; scores after steps are pass@1 and maj@4 per question, by data."""
    for folder in ("evaluations", "rollouts"):
        (path / folder).mkdir(parents=True)
    settings = load_settings("tiny-arithmetic", overrides=overrides)
    (path / "config.toml").write_text(settings.to_toml())
    lines = [{"step": number, **step} for number, step in enumerate(steps, start=1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step, groups in rollouts.items():
        text = "".join(json.dumps(group) + "\n" for group in groups)
        (path / "rollouts" / f"step_{step:05d}.jsonl").write_text(text)
    for step, measured in (scores or {}).items():
        found = [_result(name, step, *values) for name, values in measured.items()]
        (path / "evaluations" / f"step_{step:05d}.json").write_text(results_json(found))
    if summary is not None:
        (path / "summary.json").write_text(json.dumps(summary))
    return read_run(path)


def hostile_run(path: Path) -> RunRecord:
    """Two steps of a question for each hostile text, which is everywhere: id, prompt, answers."""
    rollouts = {
        step: [
            asked(f"q{i} {text}", text, text, [answered(text, text, 1.0), answered("7", "7")])
            for i, text in enumerate(HOSTILE)
        ]
        for step in (1, 2)
    }
    steps = [{"vote/majority_ratio": 0.5, "time/rollout_s": 2.0, "rollout/tokens": 100}] * 2
    name = "name=<img src=x onerror=window.broken=1>"
    summary = {"steps": 2, "stopped": HOSTILE[0], "wall_s": 5.0}
    return recorded_run(path, rollouts, steps, overrides=[name], summary=summary)


def small_run(path: Path, *overrides: str, shift: float = 0.0) -> RunRecord:
    """Three steps of three questions; measured twice.

    A label is wrong, one flips, one is tied, and one is of undecided votes.
    """
    right = {"q1": "7", "q2": r"\frac{1}{2}", "q3": "30"}
    labels = {
        1: {"q1": ("7", 3), "q2": (r"\frac{1}{2}", 4), "q3": ("31", 3)},
        2: {"q1": ("8", 2), "q2": ("0.5", 4), "q3": ("31", 4)},
        3: {"q1": ("7", 4), "q2": (r"\frac{1}{2}", 3), "q3": ("31", 2)},
    }
    rollouts = {
        step: [
            asked(
                name,
                f"What is {name}? It is not $x^2$.",
                label,
                [answered(f"So \\boxed{{{label}}}.", label, 1.0)] * count
                + [answered(f"wrong, {right[name]}0", f"{right[name]}0", 0.0, True)] * (4 - count),
                undecided=int((step, name) == (2, "q2")),
            )
            for name, (label, count) in of_step.items()
        ]
        for step, of_step in labels.items()
    }
    steps = [
        {
            "vote/majority_ratio": 0.5 + 0.1 * number + shift,
            "policy/entropy": 1.0 / (number + 1) + shift,
            "rollout/response_tokens_mean": 10.0 + number,
            "rollout/tokens": 400,
            "time/rollout_s": 2.0,
            "time/update_s": 1.0 + number,
            "mismatch/kl": 1e-4,
            "policy/updates": 2,
        }
        for number in range(3)
    ]
    scores = {
        0: {"train": ([0.25, 0.5, 0.0], [0.5, 1.0, 0.0])},
        3: {"train": ([0.75, 1.0, 0.5 + shift], [1.0, 1.0, 0.5])},
    }
    summary = {"steps": 3, "stopped": None, "wall_s": 12.0}
    return recorded_run(path, rollouts, steps, scores, overrides, summary)


def long_run(path: Path, steps: int = 1000, questions: int = 8, votes: int = 16) -> RunRecord:
    """A long run: curves of all kinds, and answers that repeat as those of a model do."""
    rollouts = {}
    for step in range(1, steps + 1):
        groups = []
        for q in range(questions):
            name = (step * questions + q) % 512
            votes_for = [(v * v + step) % (2 + 600 // step) for v in range(votes)]
            answers = [
                answered(
                    f"Step {v}: we add {name} and {vote}, {'carry the one, ' * (v % 5)}so that "
                    f"the sum is ${name} + {vote} = {name + vote}$. \\boxed{{{name + vote}}}",
                    str(name + vote),
                    float(vote == votes_for[0]),
                )
                for v, vote in enumerate(votes_for)
            ]
            label = str(name + votes_for[0])
            groups.append(asked(f"train-{name}", f"What is {name} + 0?", label, answers))
        rollouts[step] = groups
    metrics = [_figures(step, steps) for step in range(1, steps + 1)]
    scores = {
        step: {
            "train": ([step / steps / 2] * 4, [0.6] * 4),
            "held_out": ([step / steps / 3] * 4, [0.5] * 4),
        }
        for step in range(0, steps + 1, max(1, steps // 20))
    }
    summary = {"steps": steps, "stopped": None, "wall_s": 36_000.0}
    return recorded_run(path, rollouts, metrics, scores, ["evaluation.every=50"], summary)


def _figures(step: int, steps: int) -> dict[str, float]:
    wave, share = math.sin(step * 12.9898) * 0.05, step / steps
    return {
        "vote/majority_ratio": 0.4 + share / 2 + wave,
        "label/label_accuracy": 0.5 + share / 4 + wave,
        "label/ground_truth_reward": 0.3 + share / 2 + wave,
        "reward/majority_reward": 0.4 + share / 2 + wave,
        "trained/majority_reward": 0.5 + share / 3 + wave,
        "vote/abstention_share": 0.1 - share / 20 + wave / 2,
        "vote/tie_share": 0.1 + wave / 2,
        "vote/flip_rate": 0.5 - share / 3 + wave,
        "vote/undecided_share": 0.0,
        "vote/distinct_answers": 20 - 15 * share + wave * 20,
        "policy/entropy": 0.9 - 0.6 * share + wave,
        "rollout/response_tokens_mean": 900 - 200 * share + wave * 1000,
        "rollout/truncated_share": 0.1 + wave / 2,
        "rollout/tokens": 120_000.0,
        "policy/tokens": 60_000.0,
        "policy/updates": 2,
        "mismatch/kl": 1e-4 * (1.5 + wave * 10),
        "policy/sampler_kl": 2e-4 * (1.5 + wave * 10),
        "mismatch/max_log_ratio": 0.5 + wave,
        "policy/grad_norm": 0.4 + wave,
        "policy/clip_fraction": 0.01 + wave / 10,
        "time/rollout_s": 25 + wave * 50,
        "time/update_s": 14 + wave * 20,
        "memory/rollout_gpu": 36.0,
        "memory/rollout_planned": 35.2,
        "memory/update_gpu_peak": 31.0 + wave,
        "memory/update_planned": 33.0,
        "memory/rollout_host": 12.0 + share,
        "memory/update_host": 12.5 + share,
    }


def _result(
    data: str, step: int, pass_1: Sequence[float], maj_4: Sequence[float]
) -> EvaluationResult:
    scores = [{"pass@1": one, "maj@4": four} for one, four in zip(pass_1, maj_4, strict=True)]
    questions = tuple(QuestionScores(f"q{i}", row) for i, row in enumerate(scores))
    return EvaluationResult("tiny-base", data, {}, questions, step)
