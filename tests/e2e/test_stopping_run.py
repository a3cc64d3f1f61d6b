"""A run that its votes end stops where the replay of its record says."""

from __future__ import annotations

import json

from small_run import Run
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
