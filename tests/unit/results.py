"""Results of evaluations, by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ttrl.report.results import EvaluationResult, QuestionScores


def result(
    model: str,
    pass_at_1: Sequence[float],
    data: str = "q.jsonl",
    levels: Sequence[str | None] | None = None,
    sampling: Mapping[str, float] | None = None,
    **others: Sequence[float],
) -> EvaluationResult:
    """Questions q0, q1 ... with these scores; ``maj_4=...`` is maj@4."""
    rows = [{"pass@1": value} for value in pass_at_1]
    for name, values in others.items():
        for row, value in zip(rows, values, strict=True):
            row[name.replace("maj_", "maj@")] = value
    at = levels or [None] * len(rows)
    questions = [QuestionScores(f"q{i}", row, at[i]) for i, row in enumerate(rows)]
    return EvaluationResult(model, data, sampling or {}, tuple(questions))
