"""Settings of workflows in turns that contradict each other, or can mean nothing."""

from __future__ import annotations

import re

import pytest
from conversations import begun
from recipes import refusal

from ttrl.rollout.workflows.checks import agents_of
from ttrl.settings.agent_rules import calls
from ttrl.settings.agents import places_of
from ttrl.settings.per_agent_rules import agent_count
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError

DEBATE = ("rollout.workflow=debate", "rollout.agents=2", "rollout.rounds=2")
MIXTURE = ("rollout.workflow=mixture", "rollout.agents=3")
CHAIN = ("rollout.workflow=chain", "rollout.agents=3", "rollout.votes=66")
EACH = (*DEBATE, "rollout.policies=per_agent")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rollout.agents=2"], 'agents = 2 needs rollout.workflow = "debate" or "mixture" or "ch'),
        (["rollout.rounds=2"], "rollout.rounds = 2 needs rollout.workflow"),
        (["agents.shaping=margin"], "[agents] needs rollout.workflow"),
        ([*DEBATE, "agents.shown_as=x"], "shows no {answer}: an agent would see nothing"),
        ([*DEBATE, "rollout.agents=1"], "takes two who answer first; set 2 or more"),
        ([*DEBATE, "rollout.rounds=1"], "rollout.rounds = 1 is no debate"),
        ([*MIXTURE, "rollout.rounds=2"], "in a mixture each agent acts once"),
        ([*MIXTURE, "rollout.agents=1"], "agents = 1 is too few"),
        ([*CHAIN, "rollout.agents=2"], "takes a generator, a verifier and a refiner; set 3"),
        ([*CHAIN, "rollout.votes=64"], "a multiple of the 3 of one chain, twice"),
        ([*CHAIN, "rollout.votes=64"], "set 66"),
        ([*DEBATE, "rollout.votes=4", "policy.trained_samples=4"], "multiple of the 4"),
        ([*DEBATE, "reward.labels=harmony"], "takes all answers for answers to the question"),
        ([*DEBATE, "reward.labels=reflection"], "most have read others: unset one"),
        ([*DEBATE, "reward.advantages=prime", "agents.shaping=quality"], "rewards of 0 to 1"),
        ([*DEBATE, "reward.advantages=prime", "agents.outcome_coef=0.5"], "rewards of 0 to 1"),
        ([*DEBATE, "reward.advantages=max_rl", "agents.shaping=margin"], "brings below 0"),
        ([*DEBATE, "agents.shaping_coef=0.3"], "shaping_coef = 0.3 needs agents.shaping"),
        ([*DEBATE, "reward.advantages=remax"], 'needs rollout.workflow = "single_turn"'),
        ([*DEBATE, "rollout.stop_when_decided=true"], "needs rollout.workflow"),
        ([*DEBATE, 'agents.debate="{question} {answer}"'], "shows {answer}: expected {answers}, {"),
        ([*DEBATE, 'agents.shown_as="{answers}"'], "agents.shown_as"),
        ([*DEBATE, 'agents.debate="{question:>9}"'], "{question} has a format"),
        (["rollout.policies=per_agent"], "a plan of your own (FILE.py:CLASS); it is 'single_turn'"),
        (
            [*EACH, "rollout.overlap=true", "rollout.placement=separate"],
            "the engine takes their weights, turn by turn, meanwhile",
        ),
        ([*EACH, "algorithm=ppo"], "trains one critic beside one policy"),
        ([*EACH, "algorithm=prime"], "trains one reward model beside one policy"),
        ([*EACH, "reward.labels=teacher"], "follows the weights of one policy: with rollout.pol"),
        ([*EACH, "reward.labels=harmony"], "asks one policy for text"),
    ],
)
def test_what_does_not_go_together(overrides: list[str], words: str) -> None:
    assert words in refusal(*overrides)


def test_a_stream_has_one_policy() -> None:
    with pytest.raises(UserError, match=r'needs data.source = "list", got "stream": what arrives'):
        load_settings("tiny-stream", overrides=EACH)


@pytest.mark.parametrize(
    ("overrides", "count"), [(DEBATE, 2), (MIXTURE, 4), (CHAIN, 3), ((), None)]
)
def test_the_agents_of_a_workflow(overrides: tuple[str, ...], count: int | None) -> None:
    settings = load_settings("tiny-arithmetic", overrides=overrides)
    assert agent_count(settings.rollout) == count
    if count is not None:
        each = [*overrides, "rollout.policies=per_agent"]
        held = begun(load_settings("tiny-arithmetic", overrides=each))
        assert len(held.agents) == count == len(agents_of(held, held.settings))
        assert agents_of(held, settings) == ()


def test_who_would_never_learn_is_said() -> None:
    few = load_settings(
        "tiny-arithmetic",
        overrides=[*EACH, "policy.trained_samples=3", "policy.sequences_per_update=8"],
    )
    with pytest.raises(UserError, match=r"= 3 ends before the last of the 4 answers of a traj"):
        agents_of(begun(few), few)
    other = few.model_copy(update={"reward": few.reward.model_copy(update={"selection": "random"})})
    assert agents_of(begun(other), other) == ("debater 0", "debater 1")
    with pytest.raises(UserError, match="has a run of its own: subclass Conversation without one"):
        agents_of(None, few)


def test_a_question_that_is_forgotten_is_answered_alone() -> None:
    own = ["lora.rank=4", "rollout.questions_per_step=1", "policy.sequences_per_update=32"]
    stream = ["stream.reset=per_question", "stream.visits=8"]
    with pytest.raises(UserError, match="would answer in turns before a question is learned"):
        load_settings("tiny-stream", overrides=[*own, *stream, *DEBATE])
    assert load_settings("tiny-stream", overrides=DEBATE).agents.shaping == "none"


@pytest.mark.parametrize(("overrides", "expected"), [(DEBATE, 4), (MIXTURE, 4), (CHAIN, 3)])
def test_the_calls_of_a_trajectory(overrides: tuple[str, ...], expected: int) -> None:
    assert calls(load_settings("tiny-arithmetic", overrides=overrides).rollout) == expected


def test_the_recipe_is_the_tasks_with_short_prompts() -> None:
    own, task = load_settings("tiny-agents"), load_settings("tiny-arithmetic")
    same = {"name", "rollout", "agents"}
    assert own.model_dump(exclude=same) == task.model_dump(exclude=same)
    for name in ("mixture", "verify", "judge", "refine", "act", "conclude", "debate"):
        template = getattr(own.agents, name)
        assert re.fullmatch(r"(\{\w+\}\n?)+", template)  # nothing that the model has never read
        assert places_of(template)[-1] == "question"
