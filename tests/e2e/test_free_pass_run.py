"""Runs whose labels come from a free pass: replayed, resumed, and sampled beside the update."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from compared_runs import differences
from rich.console import Console
from small_run import Run, interrupted
from step_lines import step_lines

from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train
from ttrl.types import UserError

TURN = Path(__file__).parents[2] / "bench" / "paraphrases" / "turned_around.py"
HARMONY = (
    "data.held_out=none",
    "reward.labels=harmony",
    f"harmony.paraphrase={TURN}:turn",
    "harmony.votes=4",
)
QUIET = Display(Console(quiet=True))


def trained(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_replies_are_recorded_and_never_sampled_again(run: Run, tmp_path: Path) -> None:
    recorded = run("recorded", [*HARMONY, "checkpoint.every=1", "checkpoint.keep=2"])
    rows = [json.loads(x) for x in (recorded / "rollouts" / "step_00001.jsonl").open()]
    for row in rows:
        (replies,) = row["passes"]
        a, b = (word for word in row["prompt"].split() if word[0].isdigit())
        assert f"What is {b.strip('?')} + {a}?" in replies["prompt"]
        assert len(replies["completions"]) == 4
    for line in step_lines(recorded):
        assert line["free_pass/prompts"] == 4
        assert line["free_pass/tokens"] > 4 * 4 * 8
        assert 0 < line["time/free_pass_s"] < line["time/rollout_s"]
    first = sum(c["tokens"] for row in rows for c in row["passes"][0]["completions"])
    assert step_lines(recorded)[0]["free_pass/tokens"] == first

    settings = load_settings(str(recorded / "config.toml"))
    train(settings, RunFolder(tmp_path / "again"), QUIET, recorded / "rollouts")
    assert trained(tmp_path / "again") == trained(recorded)
    for step in (1, 2):
        for kind in ("jsonl", "safetensors"):
            name = f"rollouts/step_0000{step}.{kind}"
            assert (tmp_path / "again" / name).read_bytes() == (recorded / name).read_bytes()

    left = interrupted(recorded, tmp_path / "left", step=1)
    train(settings, RunFolder(left), QUIET, resume=True)
    assert differences(recorded, left) == set()

    # The labels are what is trained on: with the voters' own ones it is another policy.
    changes = ["reward.labels=votes", "harmony.paraphrase=policy", "harmony.votes=none"]
    own = load_settings(str(recorded / "config.toml"), overrides=changes)
    train(own, RunFolder(tmp_path / "votes"), QUIET, recorded / "rollouts")
    assert trained(tmp_path / "votes") != trained(recorded)
    with pytest.raises(UserError, match=r"step 1 has 0 replies \(paraphrased\) to question"):
        train(settings, RunFolder(tmp_path / "none"), QUIET, tmp_path / "votes" / "rollouts")


def test_they_are_asked_for_beside_an_update(run: Run) -> None:
    """Of a policy that does not move, overlapping steps are those of any other run."""
    options = [*HARMONY, "optimizer.learning_rate=1e-30", "rollout.placement=separate"]
    ahead = run("ahead", [*options, "rollout.overlap=true"])
    after = run("after", options)
    assert [line["rollout/updates_behind"] for line in step_lines(ahead)] == [0, 1]
    for step in (1, 2):
        first, second = (
            [json.loads(x) for x in (f / "rollouts" / f"step_0000{step}.jsonl").open()]
            for f in (ahead, after)
        )
        assert [r["label"] for r in first] == [r["label"] for r in second]
        assert [r["passes"][0]["completions"] for r in first] == [
            r["passes"][0]["completions"] for r in second
        ]


def test_a_model_that_knows_sums_only_picks_nothing_and_that_is_counted(run: Run) -> None:
    options = ["data.held_out=none", "reward.labels=reflection", "max_steps=1"]
    small = ["reflection.summary_tokens=8", "reflection.tokens=16"]
    (line,) = step_lines(run("reflection", [*options, *small]))
    assert line["free_pass/prompts"] > 0
    contested = line["vote/distinct_answers"] > 1
    assert contested and 0 < line["free_pass/unlabelled_share"] <= 1
    assert line["free_pass/tokens"] > 0


def test_conversations_are_refused_before_a_model_is_loaded(run: Run, tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 2"}]
    rows = [json.dumps({"prompt": messages, "id": str(i)}) for i in range(8)]
    (tmp_path / "talk.jsonl").write_text("\n".join(rows))
    with pytest.raises(UserError, match="'0' cannot be put in another prompt"):
        run("talk", ["data.held_out=none", f"data.train={tmp_path / 'talk.jsonl'}", *HARMONY[1:]])


def test_labels_per_sample_are_recorded_and_replayed(run: Run, tmp_path: Path) -> None:
    recorded = run("recorded", ["data.held_out=none", "reward.estimator=scope"])
    rows = [json.loads(x) for x in (recorded / "rollouts" / "step_00002.jsonl").open()]
    for row in rows:
        said = [(c["answer"], c["label"], c["reward"]) for c in row["completions"]]
        assert all(reward == (answer == label is not None) for answer, label, reward in said)
    for line in step_lines(recorded):
        assert 1 <= line["estimator/subgroup_size"] <= 8
        assert line["estimator/token_confidence"] > 1
    settings = load_settings(str(recorded / "config.toml"))
    train(settings, RunFolder(tmp_path / "again"), QUIET, recorded / "rollouts")
    assert trained(tmp_path / "again") == trained(recorded)
