"""A user's own workflow: what it may return, and what is said where it may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from small_run import SMALL

import ttrl
from ttrl.types import StepResult

WORKFLOWS = '''
from dataclasses import replace

from ttrl.rollout.sampling import voting
from ttrl.rollout.workflows import Conversation


class Twice:
    """Asks twice, half of the answers each time."""

    def __init__(self, settings):
        self.settings = settings

    def run(self, ask, questions, step, on_group):
        halves = []
        for name in ("first", "second"):
            votes = voting(self.settings, "rollout", step, name)
            halves.append(ask(questions, replace(votes, n=votes.n // 2), lambda group: None))
        groups = [
            replace(a, completions=a.completions + b.completions)
            for a, b in zip(*halves, strict=True)
        ]
        for group in groups:
            on_group(group)
        return groups


class Fewer(Twice):
    def run(self, ask, questions, step, on_group):
        return super().run(ask, questions, step, on_group)[1:]


class Silent(Twice):
    def run(self, ask, questions, step, on_group):
        return super().run(ask, questions, step, lambda group: None)


class Halved(Twice):
    def run(self, ask, questions, step, on_group):
        groups = super().run(ask, questions, step, on_group)
        return [replace(g, completions=g.completions[1:]) for g in groups]


class Raises(Twice):
    def run(self, ask, questions, step, on_group):
        raise ZeroDivisionError("no")


class Nucleus(Twice):
    def run(self, ask, questions, step, on_group):
        return ask(questions, replace(voting(self.settings, "rollout", step), top_p=0.9), on_group)


class Mute:
    def __init__(self, settings):
        pass


class Nothing(Twice):
    def run(self, ask, questions, step, on_group):
        return None


class Words(Twice):
    def run(self, ask, questions, step, on_group):
        return ["a"] * len(questions)


class Planless(Conversation):
    def __init__(self, settings):
        self.settings = settings
'''


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(WORKFLOWS)
    return tmp_path


def run(place: Path, name: str, *more: str, **options: object) -> ttrl.Run:
    workflow = f"rollout.workflow={place / 'own.py'}:{name}"
    overrides = [*SMALL, "max_steps=1", "data.held_out=none", workflow, *more]
    console = Console(quiet=True)
    return ttrl.train(
        "tiny-arithmetic",
        overrides=overrides,
        run_dir=place / "run",
        console=console,
        **options,  # type: ignore[arg-type]
    )


def test_answers_of_several_asks_vote_together(place: Path) -> None:
    made = run(place, "Twice")
    rows = [json.loads(x) for x in (made.path / "rollouts" / "step_00001.jsonl").open()]
    assert [len(row["completions"]) for row in rows] == [8] * 4
    assert made.metrics[0]["mismatch/max_log_ratio"] < 1e-4
    with pytest.raises(ttrl.UserError, match=r"--replay: rollout.workflow = .* once more"):
        ttrl.train(
            str(made.path / "config.toml"),
            run_dir=place / "again",
            replay=made.path / "rollouts",
            console=Console(quiet=True),
        )


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Fewer", r"returned groups of 3 questions, .* expected one for each of 4"),
        ("Silent", "told on_group of others"),
        ("Halved", "returned 7 answers to .* expected the very group that is returned"),
        ("Raises", r"failed with ZeroDivisionError: no \(.*own.py:\d+\)"),
        ("Nucleus", r"asks with top_p = 0\.9, .* and top_k = 0: expected 1 and 0, or a top_k"),
        ("Mute", "makes an object that has no method run"),
        ("Absent", "defines no Absent"),
        ("Nothing", "returned 'None': expected a list of CompletionGroup"),
        ("Words", "expected a list of CompletionGroup, one for each question"),
        ("Planless", r"without a plan: its __init__ has to call super\(\)"),
    ],
)
def test_what_is_wrong_with_it_is_said(name: str, problem: str, place: Path) -> None:
    with pytest.raises(ttrl.UserError, match=problem):
        run(place, name)


def test_votes_cannot_end_early_in_one(place: Path) -> None:
    with pytest.raises(ttrl.UserError, match=r"stop_when_decided = true needs rollout\.workflow"):
        run(place, "Twice", "rollout.stop_when_decided=true")


def test_callbacks_that_are_wrong_are_named(place: Path) -> None:
    def number(result: StepResult) -> str | None:
        return result.metrics["vote/margin"]  # type: ignore[return-value]

    with pytest.raises(ttrl.UserError, match=r"number' returned 0\..* expected None, or why"):
        run(place, "Twice", callbacks=[number])


def test_settings_are_whole(place: Path) -> None:
    settings = run(place, "Twice").settings
    with pytest.raises(ttrl.UserError, match="settings are whole"):
        ttrl.train(settings, overrides={"seed": 3}, run_dir=place / "other")
    zero3 = settings.model_copy(
        update={"policy": settings.policy.model_copy(update={"backend": "zero3"})}
    )
    with pytest.raises(ttrl.UserError, match="needs processes that a launcher has started"):
        ttrl.train(zero3, run_dir=place / "other", console=Console(quiet=True))
    assert not (place / "other").exists()
