"""An extractor of one's own: which part of a completion votes.

.venv/bin/python examples/own_extractor.py
"""

import re
import tempfile
from pathlib import Path

import ttrl

LAST_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def last_number(text: str) -> str | None:
    """Return the last number of a completion; None abstains from the vote."""
    numbers = LAST_NUMBER.findall(text)
    return numbers[-1] if numbers else None


if __name__ == "__main__":
    run = ttrl.train(
        "tiny-arithmetic",
        overrides={
            "answers.extract": f"{__file__}:last_number",  # a recipe names it in the same way
            "max_steps": 2,
            "rollout.questions_per_step": 4,
            "rollout.votes": 8,
            "policy.trained_samples": 8,
            "policy.sequences_per_update": 16,
            "evaluation.samples": 2,
        },
        run_dir=Path(tempfile.mkdtemp(prefix="ttrl-")) / "own_extractor",
    )
    print("abstained:", [step["vote/abstention_share"] for step in run.metrics])
