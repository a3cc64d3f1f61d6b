"""The same settings give the same run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from python_process import run_python
from rich.console import Console
from small_run import HERE, SMALL
from step_lines import step_lines

from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train


def _metrics(folder: Path) -> list[dict[str, float]]:
    return [
        {k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))}
        for line in step_lines(folder)
    ]


def test_resolved_settings_repeat_the_run(small: Path, tmp_path: Path) -> None:
    settings = load_settings(str(small / "config.toml"), overrides=["report.every_s=0"])
    assert settings.seed == 3
    again = tmp_path / "again"
    train(settings, RunFolder(again), Display(Console(quiet=True)))
    assert _metrics(small) == _metrics(again)
    assert len(_metrics(small)) == 2
    for path in sorted((small / "rollouts").iterdir()):
        assert path.read_bytes() == (again / "rollouts" / path.name).read_bytes()
    weights = [(f / "model" / "model.safetensors").read_bytes() for f in (small, again)]
    assert weights[0] == weights[1]


def test_a_debate_is_the_same_in_another_folder_and_with_other_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    debate = [*SMALL, "rollout.workflow=debate", "rollout.agents=2", "rollout.rounds=2"]
    debate.append('agents.debate="{answers}{question}"')
    train(
        load_settings("tiny-arithmetic", overrides=debate),
        RunFolder(tmp_path / "here"),
        Display(Console(quiet=True)),
    )
    other = tmp_path / "another" / "folder"
    other.mkdir(parents=True)
    for name in ("few_train.jsonl", "few_held_out.jsonl"):
        shutil.copy(HERE / name, other)
    monkeypatch.chdir(other)
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    debate += ["data.train=few_train.jsonl", "data.held_out=few_held_out.jsonl"]
    settings = [word for override in debate for word in ("--set", override)]
    command = ["-m", "ttrl.cli", "train", "tiny-arithmetic", "--run-dir", "run", *settings]
    done = run_python(*command, gpus=True)
    assert done.returncode == 0, done.stderr
    names = {
        path.relative_to(other / "run")
        for pattern in ("rollouts/*", "evaluations/*", "model/*.safetensors")
        for path in (other / "run").glob(pattern)
    }
    assert len(names) == 2 * 2 + 2 + 1  # answers and votes of two steps, before and after, weights
    differ = [
        name
        for name in names
        if (tmp_path / "here" / name).read_bytes() != (other / "run" / name).read_bytes()
    ]
    assert differ == []
