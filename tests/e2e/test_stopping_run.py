"""A run that its votes end stops where the replay of its record says, killed in between or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from compared_runs import differences
from few_steps import killed_and_continued, trained_on
from small_run import HERE, Run
from step_lines import step_lines

from ttrl.evaluation.stopping import StoppingRule
from ttrl.report.run_record import read_run

STOPPING = ["stopping.by_votes=true", "stopping.patience=1", "stopping.gain=1.0"]


def test_a_run_stops_where_its_replay_does(run: Run) -> None:
    """No pass is better by 1, so the first one that is rated ends it: two windows of 8 steps."""
    folder = run("stopped", [*STOPPING, "max_steps=20", "epochs=20"])
    lines = step_lines(folder)
    assert len(lines) == 16
    rule = StoppingRule(read_run(folder).settings.stopping, 8)
    *before, last = (rule.after_step(line["step"], line) for line in lines)
    assert before == [None] * 15 and last is not None
    stopped = json.loads((folder / "summary.json").read_text())["stopped"]
    assert stopped == f"step 16: {last.reason}; the model is that of step {rule.best}"
    assert read_run(folder).state == "stopped"


@pytest.mark.parametrize(("patience", "at"), [(1, (11,)), (2, (11, 18))])
def test_a_killed_run_that_its_votes_end_is_the_one_that_was_not(
    patience: int, at: tuple[int, ...], tmp_path: Path
) -> None:
    """Without labels. No pass is better by 1, so it goes back to the first weights.

    It is killed when nothing has been rated yet, and when one pass has been.
    """
    rows = [json.loads(line) for line in (HERE / "few_train.jsonl").open()]
    questions = tmp_path / "q.jsonl"
    unlabelled = [{"id": row["id"], "prompt": row["prompt"]} for row in rows]
    questions.write_text("".join(json.dumps(row) + "\n" for row in unlabelled))
    options = [
        f"data.train={questions}",
        "data.held_out=none",
        *STOPPING,
        f"stopping.patience={patience}",
        "stopping.share=1",
        "max_steps=26",
        "epochs=20",
        "rollout.questions_per_step=2",
        "policy.sequences_per_update=6",
        "checkpoint.every=3",
        "guard.on_collapse=ignore",
    ]
    whole = trained_on(tmp_path / "whole", options)
    left = killed_and_continued(tmp_path / "left", options, at)
    assert differences(whole, left) == set()
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["stopped"].endswith("the model is that of step 0")
    assert (summary["steps"], summary["before"]) == (8 * (patience + 1), {})
