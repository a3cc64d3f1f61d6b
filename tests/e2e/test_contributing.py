"""The section "Add ..." of CONTRIBUTING.md, followed step by step, and a run with all of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from small_run import SMALL
from step_lines import step_lines

from ttrl.rewards import majority_vote
from ttrl.settings.recipe import load_settings
from ttrl.types import Completion, CompletionGroup, Estimate, FinishReason, Question

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(python|diff)\n# (\S+)\n(.*?)^```$", re.M | re.S)
BLOCKS = BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))


QUESTION = Question("q", "1 + 0?", (7, 8))


def completion(tokens: int) -> Completion:
    """An answer of so many tokens."""
    return Completion(tuple(range(tokens)), (-0.5,) * tokens, "", FinishReason.STOP)


def changed(text: str, diff: str) -> str:
    """The text with a diff applied: its lines without "+" stand there, once."""
    lines = diff.splitlines()
    before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
    assert text.count(before) == 1, before
    return text.replace(before, after)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with everything added that the section adds."""
    tree = tmp_path_factory.mktemp("tree")
    for package in ("ttrl", "kernels/ttrl_kernels"):
        shutil.copytree(ROOT / package, tree / package)
    for kind, name, text in BLOCKS:
        path = tree / name
        if kind == "python":
            assert not path.exists()
            path.write_text(text, encoding="utf-8")
        else:
            path.write_text(changed(path.read_text(encoding="utf-8"), text), encoding="utf-8")
    return tree


def test_what_is_added_is_in_style(tree: Path) -> None:
    (tree / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    for check in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "."]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_credit_that_is_added(tree: Path) -> None:
    spec = spec_from_file_location("discounted", tree / "ttrl" / "credit" / "discounted.py")
    assert spec and spec.loader
    discounted = module_from_spec(spec)
    spec.loader.exec_module(discounted)
    of = CompletionGroup(QUESTION, (completion(2), completion(3)), 0)
    estimate = Estimate(vote=majority_vote(["1", "2"]), rewards_G=(1.0, 0.0), label="1")
    assigned = discounted.Discounted(load_settings("tiny-arithmetic")).assign([of], [estimate], 1)
    # The mean is 1/2 and the standard deviation 1/sqrt(2).
    assert [s.advantages for s in assigned.samples] == [
        pytest.approx([0.99 / 2**0.5, 1 / 2**0.5], abs=1e-5),
        pytest.approx([-(0.99**2) / 2**0.5, -0.99 / 2**0.5, -1 / 2**0.5], abs=1e-5),
    ]


@pytest.mark.usefixtures("cold_starts")
def test_a_run_with_all_that_is_added(tree: Path, tmp_path: Path) -> None:
    overrides = (
        *SMALL,
        "data.train=counting",
        "data.held_out=none",
        "max_steps=2",
        "reward.estimator=halves",
        "reward.options.margin=0.2",
        "reward.advantages=discounted",
        "loss.policy=likelihood",
        "rollout.engine=one_by_one",
        "rollout.workflow=hot_and_cold",
    )
    command = [sys.executable, "-m", "ttrl.cli", "train", "tiny-arithmetic"]
    command += [f"--set={override}" for override in overrides]
    path = os.pathsep.join(map(str, (tree, tree / "kernels")))
    done = subprocess.run(
        [*command, f"--run-dir={tmp_path / 'run'}"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = step_lines(tmp_path / "run")
    assert first["policy/surprise"] > 0
    # The policy agrees with the engine at both temperatures.
    assert max(first["mismatch/max_log_ratio"], second["mismatch/max_log_ratio"]) < 1e-3
    rows = [json.loads(x) for x in (tmp_path / "run" / "rollouts" / "step_00002.jsonl").open()]
    assert rows[0]["question"] == "2+10"
    temperatures = [c["temperature"] for c in rows[0]["completions"]]
    assert set(temperatures[: len(temperatures) // 2]) == {0.7}
    assert set(temperatures[len(temperatures) // 2 :]) == {1.3}
    assert {c["reward"] for row in rows for c in row["completions"]} <= {0.0, 0.5, 1.0}
