"""A run on a stream: questions that are no list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from compared_runs import differences
from rich.console import Console
from small_run import SMALL, interrupted

from ttrl.data import arithmetic
from ttrl.data.sources import make_source
from ttrl.models.pretrained import load_tokenizer
from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train
from ttrl.types import UserError

STREAM = (*SMALL, "data.train=arithmetic:stream", "checkpoint.every=1")


def test_a_step_s_questions_depend_on_seed_and_step_alone() -> None:
    first, again, other = (
        make_source(settings, load_tokenizer(settings.model))[0]
        for settings in (
            load_settings("tiny-arithmetic", overrides=[*STREAM, f"seed={seed}"])
            for seed in (0, 0, 1)
        )
    )
    ids = [[q.id for q in source.questions(7)] for source in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]
    assert ids[0] != [q.id for q in first.questions(8)]
    assert first.digest() == again.digest() != other.digest()
    asked = {tuple(map(int, q.id.split("+"))) for s in range(1, 200) for q in first.questions(s)}
    assert len(asked) > 700 and not asked & arithmetic.reserved()
    assert first.questions(7)[0].prompt.startswith(f"What is {ids[0][0].replace('+', ' + ')}?")


def test_further_questions_are_those_that_would_come_next() -> None:
    few, more = (
        make_source(settings, load_tokenizer(settings.model))[0]
        for settings in (
            load_settings("tiny-arithmetic", overrides=[*STREAM, f"rollout.questions_per_step={n}"])
            for n in (4, 9)
        )
    )
    next_ones = more.questions(3)[4:]
    assert few.further(3, 0, 5) == next_ones
    assert few.further(3, 2, 3) == next_ones[2:]
    assert few.further(3, 0, 0) == few.further(3, 5, 0) == []


def test_a_run_on_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    settings = load_settings("tiny-arithmetic", overrides=STREAM)
    train(settings, RunFolder(tmp_path / "whole"), Display(Console(quiet=True)))
    rows = [
        [json.loads(x)["question"] for x in (tmp_path / "whole/rollouts" / name).open()]
        for name in ("step_00001.jsonl", "step_00002.jsonl")
    ]
    assert len({*rows[0], *rows[1]}) == 8
    left = interrupted(tmp_path / "whole", tmp_path / "left", step=1)
    train(settings, RunFolder(left), Display(Console(quiet=True)), resume=True)
    assert differences(tmp_path / "whole", left) == set()


def test_its_end_must_be_said(tmp_path: Path) -> None:
    settings = load_settings("tiny-arithmetic", overrides=[*STREAM, "max_steps=none"])
    with pytest.raises(UserError, match=r"data.train = 'arithmetic:stream' has no end: set max_st"):
        train(settings, RunFolder(tmp_path / "run"), Display(Console(quiet=True)))
    assert not (tmp_path / "run").exists()
