"""Conversations as a way to spend tokens: outcomes and tokens by hand, and as `ttrl eval` does."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conversations import Asked, said
from rich.console import Console

from ttrl.answers import default_grader
from ttrl.evaluation.measuring import load_evaluation
from ttrl.evaluation.outcomes import read_tokens
from ttrl.models.pretrained import load_tokenizer
from ttrl.report.display import Display
from ttrl.report.results import EvaluationResult, QuestionScores
from ttrl.rollout.pool import RolloutPool, make_pool
from ttrl.scaling import METHODS, Measuring
from ttrl.scaling.conversations import SHAPES, policies_of, refuse_uneven, settings_of, shape
from ttrl.scaling.training import points_of
from ttrl.settings import Settings
from ttrl.settings.agent_rules import calls
from ttrl.settings.recipe import load_settings
from ttrl.types import CompletionGroup, Question, Turn, UserError

QUIET = Display(Console(file=io.StringIO()))


def settings(tmp_path: Path, recipe: str, samples: int, *more: str) -> Settings:
    data = tmp_path / "q.jsonl"
    data.write_text(
        '{"id": "a", "prompt": "What is 3 + 4?", "answer": "7"}\n'
        '{"id": "b", "prompt": "What is 12 + 34?", "answer": "46"}\n'
    )
    own = ("threads=1", f"evaluation.samples={samples}", "evaluation.greedy=false", *more)
    return load_settings(recipe, model="tiny-base", data=str(data), overrides=own)


@contextmanager
def measuring(settings: Settings, pool: Any, counts: Sequence[int]) -> Iterator[Measuring]:
    evaluation = load_evaluation(settings, default_grader(), QUIET)
    yield Measuring(evaluation, lambda: pool, None, counts, 4, QUIET)


class Scripted:
    """A pool that says what a script says; each answer has two tokens."""

    def __init__(self, reply: Callable[[str, int], str]) -> None:
        self.sample = Asked(reply)
        self.forgotten: list[str] = []

    def forget(self, questions: Sequence[Question]) -> None:
        self.forgotten += [question.id for question in questions]


def test_outcomes_and_tokens_by_hand(tmp_path: Path) -> None:
    """Four debates of two: in the second round the agents answer 7 and 7, or 7 and 8.

    The tie of the latter goes to one of them, so that the outcomes are 7, T, 7, T.
    """
    script = iter(["7", "7", "7", "8", "7", "7", "7", "8"])

    def reply(prompt: str, place: int) -> str:
        later = "Weigh them critically" in prompt
        value = next(script) if later and "3 + 4" in prompt else "9"
        return rf"\boxed{{{value}}}"

    found = settings(tmp_path, "tiny-arithmetic", 16)
    pool = Scripted(reply)
    with measuring(found, pool, (1, 4, 8, 16)) as on:
        points = list(METHODS["debate"](on))
    assert [(p.method, p.n) for p in points] == [("debate 2x2", n) for n in (4, 8, 16)]
    tie = 1.0 if points[0].scores[0] == 1.0 else 0.0
    # One of 7, T, 7, T; two of them: with T = 8 a tie 7-8 goes to 8, as it does in the debates.
    assert points[0].scores == ((2 + 2 * tie) / 4, 0.0)
    assert points[1].scores == ((1 + 5 * tie) / 6, 0.0)
    assert points[2].scores == (tie, 0.0)
    (first, _), (second, once) = pool.sample.calls
    prompts = [len(question.prompt_ids) for question in second]
    assert len(first) == 2 and len(prompts) == 2 * 8 and once.n == 1
    assert [p.sampled for p in points] == [8, 16, 32]
    assert points[2].read == sum(prompts) / 2
    assert points[0].read == pytest.approx(points[2].read / 4)
    assert sorted(pool.forgotten) == sorted(question.id for question in second)


class Heard:
    """A pool that remembers all that it was asked."""

    def __init__(self, pool: RolloutPool) -> None:
        self.pool = pool
        self.groups: list[CompletionGroup] = []

    def sample(self, *words: Any) -> list[CompletionGroup]:
        groups = self.pool.sample(*words)
        self.groups += groups
        return groups

    def forget(self, questions: Sequence[Question]) -> None:
        self.pool.forget(questions)


@pytest.mark.parametrize("workflow", SHAPES)
def test_on_the_model_that_ships_all_that_is_asked_is_counted(
    workflow: str, tmp_path: Path
) -> None:
    """With the templates of the settings: the bare answers, and the question."""
    agents, rounds = SHAPES[workflow]
    shown = (f"rollout.workflow={workflow}", f"rollout.agents={agents}", f"rollout.rounds={rounds}")
    found = settings(tmp_path, "tiny-agents", 12, "rollout.votes=48", *shown)
    pool = Heard(make_pool(found, load_tokenizer(found.model)))
    with measuring(found, pool, (12,)) as on:
        (point,) = METHODS[workflow](on)
    later = [g for g in pool.groups if "/" in g.question.id]
    assert point.method == shape(found)
    assert point.sampled == sum(len(c.token_ids) for g in pool.groups for c in g.completions) / 2
    assert point.read == sum(len(g.question.prompt_ids) for g in later) / 2 > 0
    assert len(later) == 2 * 12 * {"debate": 2, "mixture": 1, "chain": 2}[workflow] / calls(
        found.rollout
    )
    assert all("critically" not in group.question.prompt for group in later)


def test_an_outcome_is_what_evaluation_counts(tmp_path: Path) -> None:
    """One conversation, with the same random numbers: its outcome is that of `ttrl eval`."""
    found = settings(tmp_path, "tiny-agents", 8)
    pool = make_pool(found, load_tokenizer(found.model))
    with measuring(found, pool, (4, 8)) as on:
        four, eight = METHODS["debate"](on)
        groups = on.evaluation.sample(pool, 0, QUIET)
        result = on.evaluation.score(groups, 0)
    assert four.scores == tuple(q.scores["outcome"] for q in result.questions)
    assert eight.sampled == 2 * four.sampled


def test_shapes_are_those_of_the_settings_or_usual_ones() -> None:
    alone = load_settings("tiny-arithmetic")
    held = settings_of(alone, "debate")
    assert (held.rollout.agents, held.rollout.rounds, held.agents) == (2, 2, alone.agents)
    agents = load_settings(
        "tiny-agents", overrides=["rollout.agents=3", "rollout.rounds=3", "rollout.votes=36"]
    )
    assert [shape(settings_of(agents, name)) for name in SHAPES] == [
        "debate 3x3",
        "mixture 3+1",
        "chain 3x1",
    ]
    assert settings_of(agents, "mixture").agents == agents.agents
    refuse_uneven(agents, "debate", [1, 9])
    with pytest.raises(UserError, match="a debate 3x3 has 9 answers in all turns, and debate"):
        refuse_uneven(agents, "debate", [1, 4, 8])


def test_agents_with_a_policy_each_hold_their_own_conversation_alone() -> None:
    each = load_settings("tiny-agents", overrides=["rollout.policies=per_agent"])
    assert policies_of(each, []) == ()
    assert policies_of(load_settings("tiny-agents"), ["debate", "chain"]) == ()
    with pytest.raises(UserError, match="'debate', and chain has other agents: leave it out"):
        policies_of(each, ["debate", "chain"])
    with pytest.raises(UserError, match=r"measures 2 models: expected RUN/model .* 'tiny-base'"):
        policies_of(each, ["debate"])


def test_only_later_turns_have_read() -> None:
    """Two prompts of three and four tokens; the first turn has read the question."""
    turns = [None, Turn(0, 0, 0, "a")]
    turns += [Turn(1, a, 0, "a", Question("q/1", "", tuple(range(3 + a)))) for a in (0, 1)]
    assert read_tokens([said("7", turn) for turn in turns]) == 7


def test_a_run_in_a_workflow_has_read_as_well() -> None:
    """Two questions: 100 + 60 tokens sampled, 40 read, 30 trained; an answer has 5."""
    scores = {"pass@1": 0.5, "maj@2": 1.0, "response_tokens": 5.0}
    asked = tuple(QuestionScores(id, scores) for id in "ab")
    lines = [
        {"step": 1, "rollout/tokens": 100, "agents/read_tokens": 40, "policy/tokens": 30},
        {"step": 2, "rollout/tokens": 60},
        {"step": 3, "rollout/tokens": 999},
    ]
    record = SimpleNamespace(
        settings=load_settings("tiny-agents", overrides=["evaluation.samples=2"]),
        steps=[{**line, "time/rollout_s": 1.0, "time/update_s": 2.0} for line in lines],
        evaluations=lambda: [EvaluationResult("m", "train", {}, asked, step=2)],
    )
    once, voted = points_of(record)  # type: ignore[arg-type]
    assert (once.method, once.n, once.scores) == ("training", 2, (0.5, 0.5))
    assert (once.sampled, once.read, once.trained, once.seconds) == (80 + 5, 20, 15, 3)
    assert (voted.sampled, voted.read) == (80 + 10, 20)
