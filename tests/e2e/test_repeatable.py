"""The same settings give the same run."""

from __future__ import annotations

from pathlib import Path

from small_run import Run
from step_lines import step_lines


def _metrics(folder: Path) -> list[dict[str, float]]:
    return [
        {k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))}
        for line in step_lines(folder)
    ]


def test_two_runs_are_identical(run: Run) -> None:
    first, second = run("first"), run("second")
    assert _metrics(first) == _metrics(second)
    assert len(_metrics(first)) == 2
    for path in sorted((first / "rollouts").iterdir()):
        assert path.read_bytes() == (second / "rollouts" / path.name).read_bytes()
    weights = [(f / "model" / "model.safetensors").read_bytes() for f in (first, second)]
    assert weights[0] == weights[1]


def test_resolved_settings_repeat_the_run(run: Run, tmp_path: Path) -> None:
    from rich.console import Console

    from ttrl.report.display import Display
    from ttrl.run.run_folder import RunFolder
    from ttrl.settings.recipe import load_settings
    from ttrl.trainer import train

    first = run("first", ["seed=3"])
    settings = load_settings(str(first / "config.toml"))
    assert settings.seed == 3
    train(settings, RunFolder(tmp_path / "again"), Display(Console(quiet=True)))
    assert _metrics(tmp_path / "again") == _metrics(first)
