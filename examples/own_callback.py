"""A callback of one's own: a metric per step, and a reason to stop.

.venv/bin/python examples/own_callback.py
"""

import tempfile
from pathlib import Path
from statistics import fmean

import ttrl
from ttrl.types import StepResult

LONGEST_MEAN = 70.0


def watch_lengths(result: StepResult) -> str | None:
    """Add how long agreeing answers are to the step's metrics; stop when they ramble."""
    lengths = [
        len(completion.token_ids)
        for group, estimate in zip(result.groups, result.estimates, strict=True)
        for completion, reward in zip(group.completions, estimate.rewards_G, strict=True)
        if reward > 0
    ]
    if not lengths:
        return None
    result.metrics["mine/agreeing_tokens"] = fmean(lengths)  # goes to metrics.jsonl and trackers
    too_long = fmean(lengths) > LONGEST_MEAN
    return f"agreeing answers have {fmean(lengths):.0f} tokens" if too_long else None


if __name__ == "__main__":
    run = ttrl.train(
        "tiny-arithmetic",
        overrides={
            "max_steps": 2,
            "rollout.questions_per_step": 4,
            "rollout.votes": 8,
            "policy.trained_samples": 8,
            "policy.sequences_per_update": 16,
            "evaluation.samples": 2,
        },
        run_dir=Path(tempfile.mkdtemp(prefix="ttrl-")) / "own_callback",
        callbacks=[watch_lengths],
    )
    print("tokens of agreeing answers:", [step["mine/agreeing_tokens"] for step in run.metrics])
