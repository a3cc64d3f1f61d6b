"""What a user would copy: each example is short, and does what it says."""

from __future__ import annotations

import json
import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("without_pages")

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> dict[str, Any]:
    """All names that the script leaves behind."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_each_is_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert 20 < len(lines) < 60


def test_own_extractor(capsys: pytest.CaptureFixture[str]) -> None:
    names = run("own_extractor")
    assert names["last_number"](r"12 + 3.5 = \boxed{15.5}") == "15.5"
    assert names["last_number"]("none") is None
    assert names["run"].settings.answers.extract.endswith("own_extractor.py:last_number")
    assert all(step["vote/abstention_share"] < 0.2 for step in names["run"].metrics)


def test_own_data() -> None:
    names = run("own_data")
    found = names["run"]
    assert len(found.metrics) == 2 and found.summary["before"] == {}
    prompts = (found.path / "rollouts" / "step_00001.jsonl").read_text(encoding="utf-8")
    assert sum(question in prompts for question in names["QUESTIONS"]) == 4


def test_own_callback() -> None:
    names = run("own_callback")
    found = names["run"].metrics
    assert [0 < step["mine/agreeing_tokens"] <= 80 for step in found] == [True, True]
    assert names["run"].summary["stopped"] is None


def test_own_estimator() -> None:
    found = run("own_estimator")["run"]
    for step in found.metrics:
        rows = (found.path / "rollouts" / f"step_{step['step']:05}.jsonl").open(encoding="utf-8")
        paid = [any(c["reward"] for c in json.loads(row)["completions"]) for row in rows]
        assert sum(paid) / 4 == step["estimator/clear"]  # a close vote pays nobody


def test_own_workflow() -> None:
    found = run("own_workflow")["run"]
    rows = (found.path / "rollouts" / "step_00002.jsonl").open(encoding="utf-8")
    for row in map(json.loads, rows):
        said = row["completions"]
        roles = ["writer", "writer", "editor", "editor", "chief"]
        assert [c["role"] for c in said] == roles * 2
        # Each editor reads the other writer, and the chief both editors.
        assert [said[1]["text"] in said[2]["prompt"], said[0]["text"] in said[3]["prompt"]] == [
            True
        ] * 2
        assert all(c["text"] in said[4]["prompt"] for c in said[2:4])
    assert 0 <= found.summary["after"]["outcome"] <= 1


def test_trl_votes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's, of the versions that it knows
        names = run("trl_votes")
    rewards = names["rewards"]
    assert len(rewards) == 2
    assert all(1 / names["VOTES"] <= share <= 1 for share in rewards)  # a majority has a vote
