"""A run on some questions of a list, and measured on all: killed and continued it is the same."""

from __future__ import annotations

import json
from pathlib import Path

from compared_runs import differences
from few_steps import killed_and_continued, trained_on
from small_run import HERE

from ttrl.report.run_record import read_run


def test_a_killed_run_on_named_questions_is_the_one_that_was_not(tmp_path: Path) -> None:
    """Passes of three questions, of which a step takes two and leaves one out."""
    rows = [json.loads(line) for line in (HERE / "few_train.jsonl").open()]
    named = [rows[3]["id"], rows[0]["id"], rows[5]["id"]]
    options = [
        f"data.ids={json.dumps(named)}",
        "rollout.questions_per_step=2",
        "policy.sequences_per_update=6",
        "max_steps=5",
        "epochs=9",
        "evaluation.every=2",
        "checkpoint.every=2",
    ]
    whole = trained_on(tmp_path / "whole", options)
    left = killed_and_continued(tmp_path / "left", options, at=(3, 5))
    assert differences(whole, left) == set()
    record = read_run(left)
    asked = [{group.question for group in record.groups(step)} for step in record.sampled]
    assert set.union(*asked) == set(named) and all(len(of) == 2 for of in asked)
    summary = json.loads((left / "summary.json").read_text())
    assert summary["others"]["before"] != summary["before"]  # those not trained on are apart
