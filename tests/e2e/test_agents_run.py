"""Runs in turns: labels are not seen, and what was recorded, killed or shared is the same."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from compared_runs import differences
from python_process import run_python
from rich.console import Console
from small_run import SMALL, UNMEASURED, Run, interrupted, with_labels

from ttrl.data.arithmetic import question_rows
from ttrl.report.display import Display
from ttrl.report.results import load_results
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train
from ttrl.types import UserError

QUIET = Display(Console(quiet=True))
SHORT = (
    "data.held_out=none",
    "agents.shaping=margin",
    'agents.shown_as="{answer}\\n"',
    'agents.debate="{answers}{question}"',
    'agents.mixture="{answers}{question}"',
    'agents.verify="{generator} {question}"',
    'agents.judge="{generator} {question}"',
    'agents.refine="{generator} {verifier} {question}"',
    'agents.act="{generator} {agent} {question}"',
    'agents.conclude="{generator} {agent} {question}"',
)
DEBATE = (*SHORT, "rollout.workflow=debate", "rollout.agents=2", "rollout.rounds=2")
CHAIN = (*SHORT, "rollout.workflow=chain", "rollout.agents=4")
WORKFLOWS = {
    "debate": DEBATE,
    "mixture": (*SHORT, "rollout.workflow=mixture", "rollout.agents=3"),
    "chain": (*CHAIN, "agents.outcome_coef=0.5"),
    "role_free": (*CHAIN, "agents.chain=role_free", "agents.voters=first"),
    "verdict": (*CHAIN, "agents.chain=verdict", "agents.voters=last"),
}
OWN = """
from ttrl.rollout.workflows import Act, Conversation

class Own(Conversation):
    def turns(self):
        return [[Act("writer")], [Act("editor", "{writer} {question}", [(0, 0)])]]
"""


def trained(folder: Path, *overrides: str, **options: object) -> Path:
    settings = load_settings("tiny-arithmetic", overrides=[*SMALL, *overrides])
    train(settings, RunFolder(folder), QUIET, **options)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("name", WORKFLOWS)
def test_labels_are_not_seen(name: str, run: Run, tmp_path: Path) -> None:
    found = {}
    for labels in ("right", "wrong", "removed"):
        data = with_labels(tmp_path, labels, 8)
        made = run(f"{name} {labels}", [data, "max_steps=1", *WORKFLOWS[name]])
        found[labels] = (made / "model" / "model.safetensors").read_bytes()
        metrics = json.loads((made / "metrics.jsonl").read_text().splitlines()[-1])
        assert ("label/outcome_accuracy" in metrics) == (labels != "removed")
        scores = json.loads((made / "summary.json").read_text())["before"]
        assert ("outcome" in scores) == (labels != "removed")
    assert found["right"] == found["wrong"] == found["removed"]


def test_every_turn_is_trained_on_its_own_prompt(run: Run) -> None:
    updates = ("policy.trained_samples=8", "policy.sequences_per_update=16")
    folder = run("run", [*updates, *UNMEASURED, *DEBATE])
    lines = [json.loads(x) for x in (folder / "rollouts" / "step_00001.jsonl").open()]
    metrics = [json.loads(x) for x in (folder / "metrics.jsonl").open()][1:]
    for line in lines:
        said = line["completions"]
        assert [(c["trajectory"], c["turn"], c["agent"]) for c in said] == [
            (j, t, a) for j in (0, 1) for t in (0, 1) for a in (0, 1)
        ]
        assert all(c["shaped"] == c["reward"] for c in said if c["turn"] == 0)
        for c in said[2:4]:
            assert all(before["text"] in c["prompt"] for before in said[:2])
            q = (said[0]["reward"] + said[1]["reward"]) / 2
            assert c["shaped"] == pytest.approx(c["reward"] + (c["reward"] - q) / 2)
    # The engine and the policy agree on what was sampled, so the prompts are the right ones.
    assert all(step["mismatch/max_log_ratio"] < 1e-3 for step in metrics)
    assert metrics[0]["policy/sequences"] + metrics[0]["policy/skipped_sequences"] == 4 * 8
    # One without an advantage costs nothing: those of a turn in which all are worth the same.
    alike = 0
    for line in lines:
        for turn in (0, 1):
            worth = [c["shaped"] for c in line["completions"] if c["turn"] == turn]
            alike += 4 * (len(set(worth)) == 1)
    assert metrics[0]["policy/skipped_sequences"] == alike


@pytest.mark.parametrize("name", [*WORKFLOWS, "own"])
def test_a_replay_gives_the_same_weights(name: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    own = (f"rollout.workflow={tmp_path / 'own.py'}:Own", "data.held_out=none")
    overrides = (*UNMEASURED, *WORKFLOWS.get(name, own), "rollout.resample_rounds=1")
    recorded = trained(tmp_path / "recorded", *overrides)
    again = trained(tmp_path / "again", *overrides, replay=recorded / "rollouts")
    for file in ("model/model.safetensors", "rollouts/step_00002.jsonl"):
        assert (again / file).read_bytes() == (recorded / file).read_bytes()
    other = [o for o in overrides if not o.startswith("rollout.workflow")]
    other = [o for o in other if not o.startswith(("rollout.agents", "agents", "rollout.rounds"))]
    with pytest.raises(UserError, match="answers to question"):
        trained(tmp_path / "other", *other, replay=recorded / "rollouts")


@pytest.mark.parametrize("more", [(), ("algorithm=ppo",), ("reward.advantages=reinforce_pp",)])
def test_a_run_that_was_interrupted_is_the_run_that_was_not(
    more: tuple[str, ...], tmp_path: Path
) -> None:
    overrides = (*DEBATE, "checkpoint.every=1", *more)
    whole = trained(tmp_path / "whole", *overrides)
    left = interrupted(whole, tmp_path / "left", 1)
    trained(left, *overrides, resume=True)
    assert differences(whole, left) == set()
    state = json.loads((whole / "checkpoints" / "step_00002" / "state.json").read_text())
    assert not any("/1/" in id for id in state["parts"]["pool"]["lengths"])  # of prompts asked once


def test_implicit_rewards_and_processes_of_engines(tmp_path: Path) -> None:
    plain = (*UNMEASURED, *DEBATE, "agents.shaping=none", "algorithm=prime", "max_steps=1")
    own = trained(tmp_path / "own", *plain)
    apart = trained(tmp_path / "apart", *plain, "rollout.placement=separate")
    name = Path("rollouts") / "step_00001.jsonl"
    one, other = ([json.loads(x) for x in (run / name).open()] for run in (own, apart))
    assert [[c["text"] for c in line["completions"]] for line in one] == [
        [c["text"] for c in line["completions"]] for line in other
    ]


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
def test_two_ranks_do_what_one_does(tmp_path: Path) -> None:
    options = [f"--set={o}" for o in (*SMALL, *DEBATE, "max_steps=1")]
    folder = tmp_path / "two"
    command = ("-m", "ttrl.cli", "train", "tiny-arithmetic", *options)
    done = run_python(*command, "--ranks=2", f"--run-dir={folder}")
    assert done.returncode == 0, done.stderr[-4000:]
    one = trained(tmp_path / "one", *DEBATE, "max_steps=1")
    name = Path("rollouts") / "step_00001.jsonl"
    assert (folder / name).read_bytes() == (one / name).read_bytes()
    found, expected = (
        json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in (folder, one)
    )
    for key in ("agents/reward/turn=1", "label/outcome_accuracy", "policy/loss"):
        assert found[key] == pytest.approx(expected[key], abs=1e-5)
    both = [load_results(run / "evaluations" / "step_00000.json")[0] for run in (folder, one)]
    assert both[0].questions == both[1].questions


def test_a_stream_is_answered_by_all_turns(tmp_path: Path) -> None:
    rows: list[object] = [
        {k: row[k] for k in ("id", "prompt")} for row in question_rows("train")[:4]
    ]
    talk = [{"role": role, "content": "1 + 1"} for role in ("user", "assistant", "user")]
    rows += [{"id": "talk", "prompt": talk}, {"end_of_stream": True}]
    (tmp_path / "q.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    own = (f"data.train={tmp_path / 'q.jsonl'}", "rollout.questions_per_step=2")
    small = [o for o in SMALL if not o.startswith("max_steps")]
    settings = load_settings("tiny-stream", overrides=[*small, *DEBATE, *own])
    train(settings, RunFolder(tmp_path / "run"), QUIET)
    stream = tmp_path / "run" / "stream"
    answers = [json.loads(x) for x in (stream / "answers.jsonl").open()]
    assert [answer["votes"] for answer in answers] == [8] * 4
    (refused,) = (json.loads(x) for x in (stream / "refused.jsonl").open())
    assert "cannot be put in another prompt" in refused["reason"]
