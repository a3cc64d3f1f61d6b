"""Rules for workflows of several agents: how many they are, and what does not go with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ttrl.settings.agents import AgentSettings
from ttrl.settings.plugins import is_plugin
from ttrl.settings.reward import FREE_PASS_LABELS
from ttrl.settings.rollout import IN_TURNS, RolloutSettings

if TYPE_CHECKING:
    from ttrl.settings.settings import Settings


def agent_rules(settings: Settings) -> Iterator[str]:
    """Yield a message for every rule of ``rollout.workflow`` and ``[agents]`` that is broken."""
    rollout = settings.rollout
    yield from _chain_rules(settings)
    if rollout.workflow not in IN_TURNS:
        if not is_plugin(rollout.workflow):
            yield from _unused(settings)
        return
    yield from _number_rules(rollout)
    yield from _reward_rules(settings)


def calls(rollout: RolloutSettings) -> int:
    """Count the answers of one trajectory of a shipped workflow."""
    agents = rollout.agents
    return {"debate": agents * rollout.rounds, "mixture": agents + 1, "chain": agents}[
        rollout.workflow
    ]


def _unused(settings: Settings) -> Iterator[str]:
    rollout = settings.rollout
    named = f"rollout.workflow = {rollout.workflow!r}"
    for name in ("agents", "rounds"):
        if (value := getattr(rollout, name)) != 1:
            yield f"rollout.{name} = {value} needs rollout.workflow = {_choice()}; it is {named}"
    own, usual = settings.agents.model_dump(), AgentSettings().model_dump()
    if changed := [key for key, value in own.items() if value != usual[key]]:
        yield (
            f"agents.{changed[0]} = {own[changed[0]]!r}: [agents] needs rollout.workflow = "
            f"{_choice()}, or a plan of your own (FILE.py:CLASS); it is {named}"
        )


def _choice() -> str:
    return " or ".join(f'"{name}"' for name in IN_TURNS)


def _number_rules(rollout: RolloutSettings) -> Iterator[str]:
    name, agents, rounds = rollout.workflow, rollout.agents, rollout.rounds
    least = {"debate": 2, "mixture": 2, "chain": 3}[name]
    if agents < least:
        who = "a generator, a verifier and a refiner" if name == "chain" else "two who answer first"
        yield (
            f'rollout.agents = {agents} is too few for rollout.workflow = "{name}": it takes '
            f"{who}; set {least} or more"
        )
    if name == "debate" and rounds < 2:
        yield (
            f'rollout.rounds = {rounds} is no debate: with rollout.workflow = "debate" set 2 or '
            "more"
        )
    if name != "debate" and rounds != 1:
        yield (
            f'rollout.rounds = {rounds} needs rollout.workflow = "debate": in a {name} each agent '
            "acts once"
        )
    each = calls(rollout)
    if rollout.votes % each or rollout.votes < 2 * each:
        yield (
            f"rollout.votes = {rollout.votes} are all answers to a question, of all turns: "
            f"expected a multiple of the {each} of one {name}, twice as many at least, so that "
            f"there is something to compare with; set {max(2, -(-rollout.votes // each)) * each}"
        )


def _chain_rules(settings: Settings) -> Iterator[str]:
    """Yield what is wrong with ``agents.chain`` and ``agents.voters``, of any workflow."""
    own, reward, workflow = settings.agents, settings.reward, settings.rollout.workflow
    if own.chain != "roles" and workflow != "chain":
        yield (f'agents.chain = "{own.chain}" needs rollout.workflow = "chain"; it is {workflow!r}')
    if own.voters != "all" and reward.labels != "votes":
        yield (
            f'agents.voters = "{own.voters}" would be ignored: with reward.labels = '
            f'"{reward.labels}" no answers of the run elect the label; unset one of them'
        )
    if own.chain != "verdict":
        return
    if reward.estimator == "random":
        yield (
            'agents.chain = "verdict" pays a verdict for agreeing with the label, which '
            'reward.estimator = "random" does not look at: unset one of them'
        )
    if settings.answers.extract == "choice":
        yield (
            'answers.extract = "choice" reads letters, and with agents.chain = "verdict" a verdict '
            'is 1 or 0: set answers.extract = "boxed", or unset agents.chain'
        )


def _reward_rules(settings: Settings) -> Iterator[str]:
    reward, shaping, name = settings.reward, settings.agents.shaping, settings.rollout.workflow
    if reward.labels in FREE_PASS_LABELS:
        yield (
            f'reward.labels = "{reward.labels}" takes all answers for answers to the question '
            f'alone, and with rollout.workflow = "{name}" most have read others: unset one of them'
        )
    shaped = shaping != "none" or settings.agents.outcome_coef > 0
    if shaped and reward.advantages == "prime":
        yield (
            'reward.advantages = "prime" learns to predict rewards of 0 to 1, which agents.shaping '
            "and agents.outcome_coef leave: unset them"
        )
    if shaping != "none" and reward.advantages == "max_rl":
        yield (
            'reward.advantages = "max_rl" divides by the mean reward, which agents.shaping = '
            f'"{shaping}" brings below 0: unset one of them'
        )
    if settings.agents.shaping_coef != AgentSettings().shaping_coef and shaping == "none":
        yield f"agents.shaping_coef = {settings.agents.shaping_coef} needs agents.shaping"
    if settings.stream.reset == "per_question":
        yield (
            f'rollout.workflow = "{name}" with stream.reset = "per_question" would answer in turns '
            "before a question is learned from, and alone after it: unset one of them"
        )
