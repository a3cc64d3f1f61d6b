"""Draw the README's picture from bench/results/algorithms.json: pass@1 and entropy, step by step.

.venv/bin/python scripts/picture.py
"""

import json
from pathlib import Path
from statistics import fmean

import altair as alt

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "algorithms.json"
PICTURE = ROOT / "docs" / "images" / "algorithms.svg"
PANELS: dict[str, tuple[str, float, list[float]]] = {
    "label/ground_truth_reward": ("correct answers, %", 100, [0, 100]),
    "policy/entropy": ("entropy of the policy, nats", 1, [0, 0.1]),
}
"""Curve -> title, factor, axis."""


def main() -> None:
    """Draw a line per algorithm, the mean of its seeds, in a band from lowest to highest."""
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    variants = record["tables"]["algorithms"]
    runs = {name: record["runs"][" ".join(s) or "the recipe"] for name, s in variants.items()}
    rows = [
        {"algorithm": name, "panel": panel, "step": step, **spread(values, PANELS[panel][1])}
        for name, seeds in runs.items()
        for panel in PANELS
        for step, values in enumerate(
            zip(*(seed["curves"][panel] for seed in seeds.values()), strict=True), start=1
        )
    ]
    seeds = max(map(len, runs.values()))
    title = f"128 unlabeled additions, two cores, no GPU: mean and range of {seeds} seeds"
    panels = [one_panel(panel, rows) for panel in PANELS]
    chart = alt.hconcat(*panels, title=alt.Title(title, anchor="middle"))
    PICTURE.parent.mkdir(exist_ok=True)
    chart.configure(background="white").save(PICTURE)


def spread(values: tuple[float, ...], factor: float) -> dict[str, float]:
    """Return mean, lowest and highest."""
    return {
        "mean": round(factor * fmean(values), 4),
        "low": round(factor * min(values), 4),
        "high": round(factor * max(values), 4),
    }


def one_panel(panel: str, rows: list[dict[str, object]]) -> alt.LayerChart | alt.FacetChart:
    """Draw one curve of all algorithms."""
    title, _, domain = PANELS[panel]
    own = [row for row in rows if row["panel"] == panel]
    base = alt.Chart(alt.InlineData(values=own)).encode(
        x=alt.X("step:Q", title="step"),
        color=alt.Color("algorithm:N", title=None, sort=["GRPO", "PPO", "PRIME"]),
    )
    scale = alt.Scale(domain=domain)
    band = base.mark_area(opacity=0.15).encode(
        y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q"
    )
    line = base.mark_line(strokeWidth=2).encode(y=alt.Y("mean:Q", scale=scale))
    return alt.layer(band, line).properties(width=300, height=200)


if __name__ == "__main__":
    main()
