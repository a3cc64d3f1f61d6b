"""The rewards inside the real TRL on one process and on two ranks, and our loss under its DDP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from python_process import run_python

from ttrl.answers import Grader
from ttrl.rewards.estimators import make_estimator
from ttrl.rewards.scorer import GroupScorer
from ttrl.settings.recipe import load_settings
from ttrl.types import Completion, CompletionGroup, FinishReason, Question

VOTES = 4
SCRIPT = Path(__file__).with_name("trl_ranks.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks has noted."""
    pytest.importorskip("trl", reason="TRL is not installed")
    return run(tmp_path_factory.mktemp("ranks"), 2)


def run(folder: Path, count: int | None) -> list[dict[str, Any]]:
    done = run_python(str(SCRIPT), str(folder), ranks=count)
    assert done.returncode == 0, done.stderr[-3000:]
    files = [folder / f"rank_{rank}.json" for rank in range(count or 1)]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def ours(name: str, texts: list[str], question: str, step: int, seed: int) -> list[float]:
    """What `ttrl train` pays for these answers to a question."""
    settings = load_settings("tiny-arithmetic", overrides={"seed": seed})
    scorer = GroupScorer(settings, Grader(settings.answers), make_estimator(name))
    completions = tuple(Completion((1,), (-0.5,), text, FinishReason.STOP) for text in texts)
    group = CompletionGroup(Question(question, question, (1,)), completions, 1)
    return list(scorer.estimate(group, None, step).rewards_G)


def groups(ranks: list[dict[str, Any]]) -> Iterator[tuple[int, list[str], list[float], Any]]:
    """Of each group in all calls: how much of it rank 0 had, its texts, its rewards, and `ours`."""
    for together in zip(*(rank["calls"] for rank in ranks), strict=True):
        first, answers = together[0], [[], [], []]
        for call in together:
            for column, key in zip(answers, ("prompts", "completions", "paid"), strict=True):
                column += call[key]
        prompts, texts, paid = answers
        for start in range(0, len(texts), VOTES):
            group = slice(start, start + VOTES)
            assert len(texts[group]) == VOTES and len({*prompts[group]}) == 1
            name = first["name"].removesuffix("_reward")
            seed = 5 if name == "random" else 0
            pay = partial(ours, name, question=prompts[start], step=first["step"], seed=seed)
            yield len(first["paid"]) - start, texts[group], paid[group], pay


def test_two_ranks_pay_what_ttrl_pays(ranks: list[dict[str, Any]]) -> None:
    compared = otherwise = 0
    for own, texts, paid, pay in groups(ranks):
        assert paid == pytest.approx(pay(texts), abs=1e-7)
        compared += 1
        if 0 < own < VOTES:
            otherwise += [*pay(texts[:own]), *pay(texts[own:])] != pay(texts)
    assert compared == 2 * 3 * 3  # trainers, reward functions, groups
    assert otherwise > 0  # rewards of the parts that ranks have would be others


def test_one_process_pays_what_ttrl_pays(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is not installed")
    found = [(paid, pay(texts)) for _, texts, paid, pay in groups(run(tmp_path, None))]
    assert len(found) == 2 * 3 * 2
    assert [paid for paid, _ in found] == [pytest.approx(x, abs=1e-7) for _, x in found]
    assert len({x for paid, _ in found for x in paid}) > 2


def test_our_loss_under_ddp_is_that_of_trl(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["moved"] > 0.1 and rank["apart"] < 0.01 * rank["moved"]
    for log, their_log in zip(ranks[0]["ours"], ranks[0]["theirs"], strict=True):
        for name in log.keys() - {"step_time", "kl"}:
            assert log[name] == pytest.approx(their_log[name], rel=1e-3, abs=1e-5), name
        assert log["kl"] == pytest.approx(their_log["kl"], rel=0.01, abs=1e-6)
    assert len(ranks[0]["ours"]) == 2
