"""The same settings give the same run."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
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
