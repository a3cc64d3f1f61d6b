"""Questions of one's own: a file with a line for each, and no answers.

.venv/bin/python examples/own_data.py
"""

import json
import tempfile
from pathlib import Path

import ttrl

QUESTIONS = [f"What is {a} + {a + 3}?" for a in range(11, 19)]

if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp(prefix="ttrl-"))
    questions = folder / "questions.jsonl"
    lines = [json.dumps({"prompt": question}) + "\n" for question in QUESTIONS]
    questions.write_text("".join(lines), encoding="utf-8")
    run = ttrl.train(
        "tiny-arithmetic",
        overrides={
            "data.train": str(questions),
            "data.held_out": None,
            "max_steps": 2,
            "rollout.questions_per_step": 4,
            "rollout.votes": 8,
            "policy.trained_samples": 8,
            "policy.sequences_per_update": 16,
        },
        run_dir=folder / "own_data",
    )
    for step in run.metrics:  # nothing here needed an answer
        print(step["step"], step["vote/majority_ratio"], step["policy/entropy"])
