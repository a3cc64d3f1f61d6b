"""A run that poses its own questions: recorded, resumed bit for bit, paid and trained on."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from compared_runs import differences
from rich.console import Console
from small_run import SMALL, interrupted
from step_lines import step_lines

from ttrl.commands.runs import show
from ttrl.report.display import Display
from ttrl.report.run_record import read_run
from ttrl.run.references import references
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train
from ttrl.types import UserError

SETTINGS = [
    *(s for s in SMALL if not s.startswith(("data.train", "max_steps"))),
    "max_steps=4",
    "posed.prompts=8",
    "posed.temperature=1.3",
    "checkpoint.every=2",
    "policy.sequences_per_update=28",
]


def train_on(folder: Path, overrides: Sequence[str] = (), *, resume: bool = False) -> None:
    settings = load_settings("tiny-self-posed", overrides=[*SETTINGS, *overrides])
    display = Display(Console(file=io.StringIO()))
    train(settings, RunFolder(folder), display, resume=resume)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("posed") / "whole"
    train_on(folder)
    return folder


def proposals(run: Path, step: int) -> list[dict[str, object]]:
    text = (run / "rollouts" / f"step_{step:05d}.posed.jsonl").read_text()
    return [said for line in text.splitlines() for said in json.loads(line)["completions"]]


def test_what_was_posed_is_what_was_asked(whole: Path) -> None:
    lines = step_lines(whole)
    for step, metrics in enumerate(lines, 1):
        said = proposals(whole, step)
        asked = {x["question"]: x["share"] for x in said if x["fate"] == "asked"}
        text = (whole / "rollouts" / f"step_{step:05d}.jsonl").read_text()
        groups = {g["question"]: g for g in map(json.loads, text.splitlines())}
        shares = {id: g["majority_ratio"] for id, g in groups.items()}
        new = {id: s for id, s in shares.items() if id.startswith(f"posed-{step}-")}
        assert sorted(asked.values()) == sorted(new.values())
        assert metrics["posed/proposals"] == len(said) >= 32
        assert metrics["posed/valid_share"] == sum(x["fate"] != "invalid" for x in said) / len(said)
        assert metrics["posed/trained"] == sum(0.3 <= s <= 0.8 for s in shares.values())
        paid = [x["advantage"] for x in said if "reward" in x]
        assert sum(paid) == pytest.approx(0, abs=1e-6)
        assert metrics["vote/majority_ratio"] == pytest.approx(sum(shares.values()) / len(shares))
        trained = 6 * metrics["posed/trained"] + len(paid)
        done = metrics.get("policy/sequences", 0) + metrics.get("policy/skipped_sequences", 0)
        assert done == trained


def test_a_resumed_run_is_the_same_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    left = interrupted(whole, tmp_path / "left", 2)
    train_on(left, resume=True)
    assert differences(whole, left) == set()
    text = (left / "rollouts" / "step_00001.posed.jsonl").read_text()
    known, asked = references(read_run(left)), set()
    for step in range(1, 5):
        asked |= {str(x["asked_as"]) for x in proposals(left, step) if x["fate"] == "asked"}
        for said in proposals(left, step):
            if said["fate"] == "asked":
                numbers = re.findall("[0-9]+", str(said["question"]))
                assert known[str(said["asked_as"])] == str(sum(map(int, numbers)))
    assert known.keys() >= asked and any(id.startswith("posed-1-") for id in asked)
    (left / "rollouts" / "step_00001.posed.jsonl").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"step_00001\.posed\.jsonl: expected proposals"):
        references(read_run(left))


def test_labels_of_a_checker(tmp_path: Path) -> None:
    train_on(tmp_path / "run", ["reward.labels=checker", "max_steps=2", "posed.reward=sqlm"])
    for metrics in step_lines(tmp_path / "run"):
        assert metrics["label/label_accuracy"] == 1


def test_it_is_shown_and_not_replayed(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(whole, None, 3, 2)
    assert "finished after 4 steps" in capsys.readouterr().out
    settings = load_settings("tiny-self-posed", overrides=SETTINGS)
    folder = RunFolder(whole.parent / "replayed")
    with pytest.raises(UserError, match=r'--replay: data\.source = "self_posed"'):
        train(settings, folder, Display(Console(quiet=True)), whole / "rollouts")
