"""Runs with other label sources, with a guard that stops, and with votes that end early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file
from small_run import Run
from step_lines import step_lines

from ttrl.data.arithmetic import question_rows
from ttrl.models.pretrained import TINY_BASE
from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train


def _steps(folder: Path) -> list[dict[str, Any]]:
    return step_lines(folder)


def _rollouts(folder: Path, step: int) -> list[dict[str, Any]]:
    lines = (folder / "rollouts" / f"step_{step:05d}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _questions(path: Path, count: int, answer: str | None = None) -> str:
    rows = [{**row, "answer": answer or row["answer"]} for row in question_rows("train")[:count]]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return f"data.train={path}"


def _weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def test_reference_answers_train_only_if_asked_for_twice(run: Run, tmp_path: Path) -> None:
    allowed = ["reward.labels=ground_truth", "reward.allow_ground_truth=true"]
    right = run("right", [_questions(tmp_path / "right.jsonl", 8), *allowed])
    assert [step["label/label_accuracy"] for step in _steps(right)] == [1.0, 1.0]
    # Nobody answers 123456, so nobody is paid, and nothing is learned.
    wrong = run("wrong", [_questions(tmp_path / "wrong.jsonl", 8, "123456"), *allowed])
    assert [step["reward/majority_reward"] for step in _steps(wrong)] == [0.0, 0.0]
    assert [step["policy/updates"] for step in _steps(wrong)] == [0, 0]
    assert _weights(right) != _weights(wrong)


def test_extra_rewards_and_masked_answers(run: Run) -> None:
    """The last 14 of 44 tokens cost something, and what was cut off is not trained on."""
    options = [
        "rollout.max_new_tokens=44",
        "reward.overlong_buffer=14",
        "policy.mask_truncated=true",
    ]
    gdpo = ["reward.extra.soft_overlong=0.5", "reward.extra_aggregation=normalize_then_sum"]
    folder = run("extra", [*options, *gdpo])
    for step, line in enumerate(_steps(folder), start=1):
        groups = [row["completions"] for row in _rollouts(folder, step)]
        penalties = [
            answer["extra_rewards"]["soft_overlong"] for answers in groups for answer in answers
        ]
        assert penalties == [-max(0, a["tokens"] - 30) / 14 for answers in groups for a in answers]
        assert -1 in penalties and 0 in penalties
        assert line["reward/extra/soft_overlong"] == pytest.approx(sum(penalties) / len(penalties))
        rewards = [answer["reward"] for answers in groups for answer in answers]
        assert line["reward/majority_reward"] == pytest.approx(sum(rewards) / len(rewards))
        whole = [sum(a["finish_reason"] == "stop" for a in answers) for answers in groups]
        live = line["policy/sequences"] + line["policy/skipped_sequences"]
        assert live == sum(min(6, n) for n in whole) < 24


@pytest.mark.parametrize("advantages", ["mean_std", "reinforce_pp"])
def test_a_step_in_which_all_is_cut_off_trains_on_nothing(run: Run, advantages: str) -> None:
    options = ["rollout.max_new_tokens=4", "policy.mask_truncated=true", "data.held_out=none"]
    folder = run("cut", [*options, f"reward.advantages={advantages}", "max_steps=1"])
    (line,) = _steps(folder)
    assert line["rollout/truncated_share"] == 1
    assert line["policy/updates"] == 0
    assert "trained/majority_reward" not in line


def test_remax_compares_with_a_greedy_answer(run: Run) -> None:
    options = ["reward.advantages=remax", "policy.trained_samples=8", "max_steps=1"]
    folder, cold = run("remax", options), run("cold", [*options, "rollout.temperature=0.01"])
    compared, same = _rollouts(folder, 1), _rollouts(cold, 1)
    (line,) = _steps(folder)
    taught = 0
    for row, frozen in zip(compared, same, strict=True):
        # Nearly at temperature 0, every vote is the greedy answer.
        assert {answer["text"] for answer in frozen["completions"]} == {row["greedy"]["text"]}
        answers = {c["text"]: c["reward"] for c in row["completions"]}
        expected = answers.get(row["greedy"]["text"], row["greedy"]["reward"])
        assert row["greedy"]["reward"] == expected
        taught += sum(c["reward"] != row["greedy"]["reward"] for c in row["completions"])
    assert line["reward/greedy_reward"] == sum(row["greedy"]["reward"] for row in compared) / 4
    assert line["policy/sequences"] == taught > 0  # r is not the greedy answer's
    assert line["rollout/tokens"] == sum(c["tokens"] for r in compared for c in r["completions"])
    assert _steps(cold)[0]["policy/updates"] == 0

    settings = load_settings(str(folder / "config.toml"))
    again = RunFolder(folder.parent / "again")
    train(settings, again, Display(Console(quiet=True)), folder / "rollouts")
    for name in ("model/model.safetensors", "rollouts/step_00001.jsonl"):
        assert (again.path / name).read_bytes() == (folder / name).read_bytes()


def test_a_fixed_teacher_gives_the_same_labels_in_every_pass(run: Run, tmp_path: Path) -> None:
    options = [_questions(tmp_path / "few.jsonl", 4), "reward.labels=teacher"]
    folder = run("teacher", [*options, "optimizer.learning_rate=1e-2"])
    labels = [{r["question"]: r["label"] for r in _rollouts(folder, step)} for step in (1, 2)]
    assert labels[0] == labels[1] and len(labels[0]) == 4
    assert _steps(folder)[1]["vote/flip_rate"] == 0.0


def test_the_guard_stops_and_goes_back(run: Run, tmp_path: Path) -> None:
    options = [
        _questions(tmp_path / "few.jsonl", 4),
        "max_steps=4",
        "optimizer.learning_rate=3e-2",
        "guard.on_collapse=stop",
    ]
    folder = run("guarded", options)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stopped"].startswith("step 2: over the last pass")
    assert summary["stopped"].endswith("the model is that of step 0")
    assert summary["steps"] == 2
    before, after = (
        load_file(TINY_BASE / "model.safetensors"),
        load_file(folder / "model" / "model.safetensors"),
    )
    assert all(before[name].equal(after[name]) for name in after)


def test_a_run_in_which_nobody_votes_says_so_and_stops(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Display, "note", lambda self, text: said.append(text))
    (tmp_path / "never.py").write_text("def never(text):\n    return None\n")
    options = [f"answers.extract={tmp_path}/never.py:never", "guard.abstaining_steps=2"]
    folder = run("silent", [*options, "max_steps=4"])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["stopped"].startswith("step 2: for 2 steps in a row more than 90% of the")
    (warning,) = [text for text in said if "no answer could be read from 100%" in text]
    assert warning.startswith("measured before training: train: warning: ")
    assert "One of them (" in warning
    assert f"stopped in {summary['stopped']}" in said


def test_votes_end_when_they_are_decided_with_the_same_label(run: Run) -> None:
    options = ["rollout.votes=16", "optimizer.learning_rate=1e-9"]
    every = run("every", options)
    fewer = run("fewer", [*options, "rollout.stop_when_decided=true"])
    for step in (1, 2):
        pairs = zip(_rollouts(every, step), _rollouts(fewer, step), strict=True)
        for all_votes, some in pairs:
            assert some["label"] == all_votes["label"]
            assert all_votes["completions"][: len(some["completions"])] == some["completions"]
    sampled = [len(r["completions"]) for step in (1, 2) for r in _rollouts(fewer, step)]
    assert min(sampled) < 16
