"""An estimator of one's own: what agreement with the label is worth.

.venv/bin/python examples/own_estimator.py
"""

import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import Field

import ttrl
from ttrl.rewards import Estimator
from ttrl.types import Estimate, VotedGroup


class Cautious(Estimator):
    """Pays nothing where the vote was close."""

    margin: Annotated[float, Field(ge=0, le=1)] = 0.25
    """How far ahead the majority must be; an option: reward.options.margin."""

    def estimate(self, voted: VotedGroup) -> Estimate:
        """r_i = 1[answer_i ≡ label], if the margin of the vote is large enough."""
        clear = voted.vote.margin >= self.margin
        rewards = tuple(float(agrees and clear) for agrees in voted.agrees_G)
        return Estimate(
            vote=voted.vote,
            rewards_G=rewards,
            label=voted.label,
            metrics={"clear": float(clear)},  # estimator/clear in metrics.jsonl
        )


if __name__ == "__main__":
    run = ttrl.train(
        "tiny-arithmetic",
        overrides={
            "reward.estimator": f"{__file__}:Cautious",
            "reward.options.margin": 0.1,
            "max_steps": 2,
            "rollout.questions_per_step": 4,
            "rollout.votes": 8,
            "policy.trained_samples": 8,
            "policy.sequences_per_update": 16,
            "evaluation.samples": 2,
        },
        run_dir=Path(tempfile.mkdtemp(prefix="ttrl-")) / "own_estimator",
    )
    print("clear votes:", [step["estimator/clear"] for step in run.metrics])
