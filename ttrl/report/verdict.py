"""How a run went, in a sentence with its reason, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from ttrl.report.display import signed
from ttrl.report.results import EvaluationResult
from ttrl.report.run_record import RunRecord
from ttrl.report.stream_scores import StreamScores, stream_scores

Kind = Literal["better", "worse", "collapse", "nothing learned", "not measured"]

FELL = 0.5
"""A score that is less than this share of what it was has collapsed, if the votes agree more."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run went.

    Example: ``Verdict("better", "pass@1 of train rose from 46.4 to 87.7 % (+41.3 ± 4.2)")``.
    """

    kind: Kind
    """In a word or two."""
    reason: str
    """What it is concluded from; one sentence, without its full stop."""

    def __str__(self) -> str:
        """Return how the run went, and why, as the sentence that a run ends with."""
        word = "looks like a collapse" if self.kind == "collapse" else self.kind
        return f"{word}: {self.reason}"


def verdict(run: RunRecord) -> Verdict:
    """Judge a run by its training questions' pass@1, if it was measured; else by the votes.

    Of a stream it is that of the answers that were given before each question was learned from.

    Votes alone cannot say that a policy became better: they agree more in either case.
    """
    if not run.steps:
        return Verdict("not measured", "the run has not made a step")
    pairs = before_and_after(run.evaluations())
    if (scores := stream_scores(run)) is not None:
        return _of_stream(run, scores, pairs)
    if pairs:
        return _of_scores(run, pairs)
    if run.steps[-1].get("guard/collapse"):
        return Verdict("collapse", f"the guard saw its signs in step {run.steps[-1]['step']}")
    if not any(run.of_policies(step, "updates") for step in run.steps):
        return Verdict("nothing learned", f"nothing was there to learn from, {_idle(run)}")
    ends = _ends(run, "vote/majority_ratio")
    if ends is None:
        return Verdict("not measured", "the lines of its steps say nothing of votes")
    first, last = ends
    return Verdict(
        "not measured",
        f"there was nothing to compare with; the majority ratio went from {first:.2f} to "
        f"{last:.2f}, which it does whether answers get better or worse",
    )


def before_and_after(
    results: Sequence[EvaluationResult],
) -> list[tuple[EvaluationResult, EvaluationResult]]:
    """Return the first and the last evaluation of each set of questions, training's first."""
    pairs = []
    for name in ("train", "held_out"):
        found = [result for result in results if result.data == name]
        if len(found) > 1:
            pairs.append((found[0], found[-1]))
    return pairs


def next_steps(run: RunRecord, command: str) -> list[str]:
    """Return what to do next, after this run: lines with a purpose and a command.

    Args:
        run: the run.
        command: how ``ttrl`` is called.
    """
    settings, path = run.settings, shlex.quote(str(run.path))
    kind = verdict(run).kind
    page = run.path / "report.html"
    opened = f", or open {shlex.quote(str(page))}" if page.exists() else ""
    steps = [f"look at its curves and answers: {command} show {path}{opened}"]
    if kind in ("worse", "collapse"):
        rate = settings.optimizer.learning_rate
        steps.append(
            f"learn more carefully: --set optimizer.learning_rate={rate / 5:.2g} (it was "
            f"{rate:g}), --set guard.on_collapse=stop"
        )
    elif kind == "nothing learned":
        steps.append("see why: docs/metrics.md says what to look at, and in which order")
    else:
        recipe = f"--recipe {path}/config.toml"
        # Agents that have a policy each were one model at the start, which has no folders of them.
        alone = settings.rollout.policies == "shared"
        against = f" --against {shlex.quote(settings.model.path)}" if alone else ""
        steps.append(
            f"measure it on other questions: {command} eval {path}/model DATA {recipe}{against}"
        )
    if settings.model.path == "tiny-base":
        steps.append(f"a real one: {command} train 1x24gb/qwen2.5-math-1.5b-lora (24 GB GPU)")
    return steps


def _of_stream(
    run: RunRecord,
    scores: StreamScores,
    pairs: Sequence[tuple[EvaluationResult, EvaluationResult]],
) -> Verdict:
    """Judge by answers to questions of which nothing was learned before."""
    first, majority = scores.first, scores.majority
    said = (
        f"of {scores.scored} questions, each before it was learned from, the first sample was "
        f"right in {100 * first.whole:.1f} %, in the last third {100 * first.last_third:.1f} %; "
        f"the majority in {100 * majority.whole:.1f} %, in the last third "
        f"{100 * majority.last_third:.1f} %"
    )
    held_out = _others(pairs)
    if (change := scores.change) is None:
        return Verdict("not measured", f"{said}{held_out}: too few to compare")
    what = (
        "from the first two thirds to the last"
        if scores.adapted is None
        else (f"to {100 * change.after:.1f} % after training on the question itself")
    )
    gain = 100 * (change.after - change.before)
    said += (
        f"; the first sample {signed(gain)} {what} (95 % interval {signed(100 * change.low)} to "
        f"{signed(100 * change.high)}){held_out}"
    )
    if not any(run.of_policies(step, "updates") for step in run.steps):  # it is the questions
        return Verdict("nothing learned", f"{said}; nothing was there to learn from, {_idle(run)}")
    if change.low > 0:
        return Verdict("better", said)
    if change.high >= 0:
        return Verdict("nothing learned", f"{said}, which may be chance, {_idle(run)}")
    if change.after < FELL * change.before and (agree := _agree_more(run)):
        return Verdict("collapse", f"{said}, {agree}")
    return Verdict("worse", said)


def _others(pairs: Sequence[tuple[EvaluationResult, EvaluationResult]]) -> str:
    """Say how pass@1 of further questions went."""
    said = ""
    for before, after in pairs:
        held = (before.mean("pass@1").value, after.mean("pass@1").value)
        said += f", of {before.data} from {100 * held[0]:.1f} to {100 * held[1]:.1f} %"
    return said


def _agree_more(run: RunRecord) -> str:
    """Say that the votes agree more at the end than at the beginning; empty if they do not."""
    ends = _ends(run, "vote/majority_ratio")
    if ends is None or ends[1] <= ends[0]:
        return ""
    first, last = ends
    return f"while the votes agree more, majority ratio {first:.2f} to {last:.2f}"


def _of_scores(
    run: RunRecord, pairs: Sequence[tuple[EvaluationResult, EvaluationResult]]
) -> Verdict:
    before, after = pairs[0]
    gain = after.gain(before, "pass@1")
    old, new = before.mean("pass@1").value, after.mean("pass@1").value
    error = gain.half_width or 0.0
    change = f"({signed(100 * gain.value)}"
    change += ")" if gain.half_width is None else f" ± {100 * error:.1f})"
    said = f"pass@1 of {before.data} went from {100 * old:.1f} to {100 * new:.1f} % {change}"
    others = _others(pairs[1:])
    if new < FELL * old and gain.value < -error and (agree := _agree_more(run)):
        return Verdict("collapse", f"{said}{others}, {agree}")
    if gain.value > error:
        return Verdict("better", said + others)
    if gain.value < -error:
        return Verdict("worse", said + others)
    return Verdict("nothing learned", f"{said}, which may be chance{others}, {_idle(run)}")


def _ends(run: RunRecord, name: str) -> tuple[float, float] | None:
    """Return the means of a metric over the first and the last tenth of the steps.

    None: no step has it.
    """
    values = [value for _, value in run.curve(name)]
    if not values:
        return None
    some = max(1, len(values) // 10)
    return fmean(values[:some]), fmean(values[-some:])


def _idle(run: RunRecord) -> str:
    """Say what a run of few updates was like."""
    shares = fmean(step.get("vote/abstention_share", 0.0) for step in run.steps)
    updates = int(sum(run.of_policies(step, "updates") for step in run.steps))
    return f"in {len(run.steps)} steps with {updates} updates, {shares:.0%} of the votes abstaining"
