"""ttrl from Python, cell by cell: a run, its numbers, an estimator and a callback of one's own.

.venv/bin/python examples/python_api.py        or open it as a notebook (VS Code, Jupytext)
"""

# %% A short run of the embedded task, without a GPU
import tempfile
from pathlib import Path

import ttrl

runs = Path(tempfile.mkdtemp(prefix="ttrl-"))
short = {
    "max_steps": 2,
    "rollout.questions_per_step": 4,
    "rollout.votes": 8,
    "policy.trained_samples": 8,
    "policy.sequences_per_update": 16,
    "evaluation.samples": 2,
}
run = ttrl.train("tiny-arithmetic", overrides=short, run_dir=runs / "first")

# %% What came out
print("before, after:", run.summary["before"]["pass@1"], run.summary["after"]["pass@1"])
for step in run.metrics:
    print(step["step"], step["vote/majority_ratio"], step["label/label_accuracy"])
print(sum(p.numel() for p in run.model.parameters()), "parameters")

# %% An estimator of one's own: agreement is worth more where the vote was clear
from ttrl.types import Estimate, VotedGroup  # noqa: E402


class Clear:
    """Pays the margin of the vote for agreeing with the label."""

    def estimate(self, voted: VotedGroup) -> Estimate:
        """r_i = 1[answer_i ≡ label] · margin."""
        rewards = tuple(voted.vote.margin * agrees for agrees in voted.agrees_G)
        return Estimate(vote=voted.vote, rewards_G=rewards, label=voted.label)


# %% A callback that looks at every step, and stops the run when it has seen enough
from ttrl.types import StepResult  # noqa: E402

seen: list[int] = []


def until_agreed(result: StepResult) -> str | None:
    """Stop once most of the answers agree with each other."""
    seen.append(sum(len(group.completions) for group in result.groups))
    agreed = result.metrics["vote/majority_ratio"]
    return f"{agreed:.0%} agree" if agreed > 0.2 else None


mine = {"estimator": Clear(), "callbacks": [until_agreed]}
stopped = ttrl.train("tiny-arithmetic", overrides=short, run_dir=runs / "second", **mine)
print(stopped.summary["steps"], "step:", stopped.summary["stopped"])
