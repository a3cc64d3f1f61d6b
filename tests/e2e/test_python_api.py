"""The Python API, as examples/python_api.py shows it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from rich.console import Console
from small_run import SMALL
from step_lines import step_lines

import ttrl

EXAMPLE = Path(__file__).parents[2] / "examples" / "python_api.py"


@pytest.mark.usefixtures("without_pages")
def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    cells = runpy.run_path(str(EXAMPLE))
    run, stopped = cells["run"], cells["stopped"]
    assert run.summary["steps"] == 2 and len(run.metrics) == 2
    assert run.metrics == step_lines(run.path)
    assert run.record.evaluations()[0].flat() == run.summary["before"]
    assert run.settings.rollout.votes == 8
    assert run.summary == json.loads((run.path / "summary.json").read_text())
    # A step of four questions with eight answers each, after which the callback stopped the run.
    assert cells["seen"] == [32]
    assert stopped.summary["steps"] == 1
    assert stopped.summary["stopped"].startswith("step 1: ")
    (rows, *_) = [json.loads(x) for x in (stopped.path / "rollouts" / "step_00001.jsonl").open()]
    counts = [c["answer"] for c in rows["completions"]]
    paid = {c["reward"] for c in rows["completions"] if c["answer"] == rows["label"]}
    assert len(paid) == 1 and paid.pop() < rows["majority_ratio"] + 1e-9
    assert len(counts) == 8
    assert "stopped in step 1" in capsys.readouterr().out


def test_a_wrong_setting_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ttrl.UserError, match=r"'rollout.vote' \(did you mean 'rollout.votes'\?\)"):
        ttrl.train("tiny-arithmetic", overrides={"rollout.vote": 8}, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_an_estimator_of_the_user_raises_is_named(tmp_path: Path) -> None:
    class Broken:
        def estimate(self, voted: object) -> None:
            raise KeyError("broken")

    problem = r"reward\.estimator = '.*Broken' failed with KeyError"
    with pytest.raises(ttrl.UserError, match=problem):
        ttrl.train(
            "tiny-arithmetic",
            overrides=SMALL,
            run_dir=tmp_path / "run",
            estimator=Broken(),  # type: ignore[arg-type]
            console=Console(quiet=True),
        )
