"""What a report draws: figures of curves, with the metrics that they are of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from ttrl.report.curves import parts
from ttrl.report.run_record import RunRecord

POINTS = 1000
"""Points of a curve; of more steps, each point is the mean of several."""

Curve = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """A curve.

    Example: ``Series("pass@1", "runs/mine", ((0, 0.5), (6, 0.6)), ((0, 0.4, 0.6),))``.
    """

    name: str
    """What it is of."""
    run: str
    """Whose it is."""
    points: tuple[tuple[float, float], ...]
    """(step, value)."""
    band: tuple[tuple[float, float, float], ...] = ()
    """(step, low, high) of 95 % intervals, where they are known."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Some curves in one plot.

    Example: ``Figure("entropy", "Policy entropy", "nats", (series,))``.
    """

    key: str
    """Names its files."""
    title: str
    unit: str
    """Of the values; "%" is for fractions of 1."""
    series: tuple[Series, ...]
    bounds: Mapping[str, float] = field(default_factory=dict)
    """Horizontal lines by name."""
    log: bool = False
    """Whether the axis of the values is logarithmic."""
    note: str = ""
    """A sentence about it."""


@dataclass(frozen=True, slots=True)
class Plot:
    """Which metrics a figure is of: its key, title and unit, and names on the page → metrics."""

    key: str
    title: str
    unit: str
    metrics: Mapping[str, str | tuple[str, str]]
    """A pair is a ratio."""
    note: str = ""
    log: bool = False


PLOTS = (
    Plot(
        "votes",
        "Votes and their labels",
        "%",
        {
            "majority ratio": "vote/majority_ratio",
            "label accuracy": "label/label_accuracy",
            "accuracy of the votes": "label/ground_truth_reward",
        },
        "Agreement rises whether answers get better or worse; the label's accuracy needs an answer "
        "key, which training never sees.",
    ),
    Plot(
        "stream",
        "A stream's questions, each before it was learned from",
        "%",
        {
            "first sample": "stream/first_accuracy_mean",
            "first sample, last third": "stream/first_accuracy_last_third",
            "majority": "stream/majority_accuracy_mean",
            "majority, last third": "stream/majority_accuracy_last_third",
            "first sample, after training on it": "stream/adapted_first_accuracy_mean",
        },
        "Shares of right answers so far, and in the last third of what had come by then.",
    ),
    Plot(
        "reward",
        "Reward",
        "",
        {
            "of all votes": "reward/majority_reward",
            "of those trained on": "trained/majority_reward",
        },
    ),
    Plot(
        "doubts",
        "Abstentions, ties, flips",
        "%",
        {
            "abstained": "vote/abstention_share",
            "tied": "vote/tie_share",
            "flipped": "vote/flip_rate",
            "undecided": "vote/undecided_share",
        },
        "Flipped: another label than at the last visit. Undecided: compared by spelling.",
    ),
    Plot("distinct", "Different answers to a question", "", {"answers": "vote/distinct_answers"}),
    Plot("entropy", "Policy entropy", "nats", {"of a token": "policy/entropy"}),
    Plot("length", "Response length", "tokens", {"mean": "rollout/response_tokens_mean"}),
    Plot("truncated", "Truncated answers", "%", {"cut off": "rollout/truncated_share"}),
    Plot(
        "mismatch",
        "Engine and policy: KL",
        "nats",
        {"first update": "mismatch/kl", "all updates": "policy/sampler_kl"},
        "Before anything is learned in a step it should stay as small as at the start.",
        log=True,
    ),
    Plot(
        "mismatch_max",
        "Engine and policy: largest gap",
        "nats",
        {"of a log-prob": "mismatch/max_log_ratio"},
        log=True,
    ),
    Plot("grad_norm", "Gradient norm", "", {"before clipping": "policy/grad_norm"}),
    Plot("clip", "Clipped tokens", "%", {"clipped": "policy/clip_fraction"}),
    Plot("kl", "KL to the starting model", "nats", {"KL": "policy/kl"}),
    Plot("critic", "Critic", "", {"explained variance": "critic/explained_variance"}),
    Plot(
        "reward_model",
        "Implicit reward model",
        "%",
        {"pairs ranked right": "prm/rank_accuracy", "signs right": "prm/sign_accuracy"},
    ),
    Plot(
        "time",
        "Time per phase",
        "seconds",
        {"rollout": "time/rollout_s", "update": "time/update_s"},
    ),
    Plot(
        "throughput",
        "Throughput",
        "tokens/s",
        {
            "sampled": ("rollout/tokens", "time/rollout_s"),
            "trained on": ("policy/tokens", "time/update_s"),
        },
        "Tokens of a phase by its whole time, on all ranks.",
    ),
    Plot(
        "gpu_memory",
        "GPU memory, planned and measured",
        "GiB",
        {
            "rollout": "memory/rollout_gpu",
            "rollout, planned": "memory/rollout_planned",
            "update": "memory/update_gpu_peak",
            "update, planned": "memory/update_planned",
        },
        "On the first rank's GPU: in use at the end of the rollout; the most that torch held in "
        "the update.",
    ),
    Plot(
        "host_memory",
        "Memory of the process",
        "GiB",
        {"rollout": "memory/rollout_host", "update": "memory/update_host"},
    ),
)


def figures(runs: Mapping[str, RunRecord]) -> list[Figure]:
    """Return the figures of which there is something to show, in the order of the page.

    Args:
        runs: by the names that are shown.
    """
    drawn = [measured for data in ("train", "held_out") if (measured := _measured(runs, data))]
    for plot in PLOTS:
        series = tuple(
            Series(name, run, tuple(thinned(curve)))
            for run, record in runs.items()
            for name, metric in _metrics(record, plot)
            if (curve := _shown(_curve(record, metric), plot))
        )
        if series:
            drawn.append(
                Figure(plot.key, plot.title, plot.unit, series, log=plot.log, note=plot.note)
            )
    return drawn


def thinned(curve: Curve) -> Curve:
    """Return a curve of at most `POINTS` points: means over steps that follow each other."""
    if len(curve) <= POINTS:
        return curve
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts(curve, POINTS)]


def maj_name(names: Sequence[str]) -> str | None:
    """Return the vote of most answers among scores' names: of "maj@4" and "maj@16" the second."""
    votes = [name for name in names if name.startswith("maj@")]
    return max(votes, key=lambda name: int(name.removeprefix("maj@")), default=None)


def _measured(runs: Mapping[str, RunRecord], data: str) -> Figure | None:
    """Return the figure of pass@1 and maj@k of some questions, with both upper bounds."""
    series: list[Series] = []
    starts: dict[tuple[str, str], dict[str, float]] = {}
    labelled: dict[str, float] = {}
    for run, record in runs.items():
        found = [result for result in record.evaluations() if result.data == data]
        if not found:
            continue
        names = found[0].names
        votes = maj_name(names)
        for name in ("pass@1", votes, "greedy"):
            if name not in names:
                continue
            means = [(r.step or 0, r.mean(name)) for r in found if name in r.names]
            band = [
                (step, max(0.0, m.value - m.half_width), min(1.0, m.value + m.half_width))
                for step, m in means
                if name == "pass@1" and m.half_width is not None
            ]
            points = tuple((float(step), m.value) for step, m in means)
            series.append(Series(name, run, points, tuple(band)))
        if votes and found[0].step == 0:
            model = (votes, record.settings.model.path)
            starts.setdefault(model, {})[run] = found[0].mean(votes).value
        if record.settings.reward.labels == "ground_truth":
            labelled[run] = found[-1].mean("pass@1").value
    if not series:
        return None
    bounds = _bounds(starts, labelled)
    title = "Accuracy on the training questions" if data == "train" else "Accuracy, held out"
    note = "Shaded: 95 % interval over questions. Grey, dashed: upper bounds"
    if not any(name.startswith("trained with") for name in bounds):
        note += "; the other one, training with the labels, is drawn with a run of it beside"
    return Figure(f"accuracy_{data}", title, "%", tuple(series), bounds, note=f"{note}.")


def _bounds(
    starts: Mapping[tuple[str, str], Mapping[str, float]], labelled: Mapping[str, float]
) -> dict[str, float]:
    """Return the upper bounds by name; of several runs of a kind, one line at their mean.

    Args:
        starts: (maj@k, model) -> the vote before training, by run.
        labelled: pass@1 after training with the labels, by run.
    """
    bounds: dict[str, float] = {}
    for (votes, _), by_run in starts.items():
        whose = f" (mean of {len(by_run)})" if len(set(by_run.values())) > 1 else ""
        whose = f" ({next(iter(by_run))})" if bounds else whose
        bounds[f"{votes} of the starting model{whose}"] = fmean(by_run.values())
    if labelled:
        whose = next(iter(labelled)) if len(labelled) == 1 else f"mean of {len(labelled)}"
        bounds[f"trained with the labels ({whose})"] = fmean(labelled.values())
    return bounds


def _metrics(record: RunRecord, plot: Plot) -> Iterator[tuple[str, str | tuple[str, str]]]:
    """Yield the names and metrics of a plot; of several agents' policies, those of each.

    A ratio counts all policies together.
    """
    policies = record.policies
    for name, metric in plot.metrics.items():
        if len(policies) == 1 or not isinstance(metric, str) or not metric.startswith("policy/"):
            yield name, metric
            continue
        for policy in policies:
            agent = policy.removeprefix("agent_") if policy != "policy" else "0"
            named = f"agent {agent}" if len(plot.metrics) == 1 else f"{name}, agent {agent}"
            yield named, policy + metric.removeprefix("policy")


def _curve(record: RunRecord, metric: str | tuple[str, str]) -> Curve:
    if isinstance(metric, str):
        return [(float(step), float(value)) for step, value in record.curve(metric)]
    above, below = metric
    return list(_ratios(record, above, below))


def _ratios(record: RunRecord, above: str, below: str) -> Iterator[tuple[float, float]]:
    model, _, count = above.partition("/")
    for line in record.steps:
        value = record.of_policies(line, count) if model == "policy" else line.get(above)
        if value and line.get(below):
            yield float(line["step"]), value / line[below]


def _shown(curve: Curve, plot: Plot) -> Curve:
    """Return the points that can be drawn; none of what a setting leaves at 0 in every step."""
    if plot.log:
        return [(step, value) for step, value in curve if value > 0]
    idle = plot.key in ("kl", "clip") and not any(value for _, value in curve)
    return [] if idle else curve
