"""A workflow of one's own: who acts in which turn, and who sees what.

.venv/bin/python examples/own_workflow.py
"""

import tempfile
from pathlib import Path

import ttrl
from ttrl.rollout.workflows import Act, Conversation, Plan

OTHER = "{answers}{question}"
"""What an editor reads: for a model that knows more, say here what to do with the drafts."""


class Editors(Conversation):
    """Two writers; each edits what the other has written; the last one sees both."""

    def turns(self) -> Plan:
        """Return the agents of each turn, with the (turn, agent) that each sees."""
        return [
            [Act("writer"), Act("writer")],
            [Act("editor", OTHER, sees=[(0, 1)]), Act("editor", OTHER, sees=[(0, 0)])],
            [Act("chief", OTHER, sees=[(1, 0), (1, 1)])],
        ]


if __name__ == "__main__":
    run = ttrl.train(
        "tiny-arithmetic",
        overrides={
            "rollout.workflow": f"{__file__}:Editors",
            "agents.shaping": "margin",
            "agents.shown_as": "{answer}\n",
            "rollout.votes": 10,  # two trajectories of five answers
            "policy.trained_samples": 10,
            "max_steps": 2,
            "rollout.questions_per_step": 4,
            "policy.sequences_per_update": 20,
            "evaluation.samples": 5,
            "data.held_out": None,  # conversations take long to measure
        },
        run_dir=Path(tempfile.mkdtemp(prefix="ttrl-")) / "own_workflow",
    )
    for turn in range(3):
        print(f"turn {turn + 1}:", [step[f"agents/reward/turn={turn}"] for step in run.metrics])
