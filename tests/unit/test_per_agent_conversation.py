"""Conversations where each agent is a policy of its own: who speaks, in which order."""

from __future__ import annotations

import pytest
from conversations import QUESTIONS, Asked, begun, run, settings

from ttrl.rollout.workflows import Conversation
from ttrl.rollout.workflows.acts import agents


def per_agent(workflow: str = "debate", **changes: object) -> Conversation:
    own = settings(workflow, **changes)
    rollout = own.rollout.model_copy(update={"policies": "per_agent"})
    return begun(own.model_copy(update={"rollout": rollout}))


def test_a_debater_keeps_its_policy_in_all_rounds() -> None:
    held = per_agent(agents=2, rounds=3, votes=12)
    ask = Asked(lambda prompt, i: f"answer {i}")
    groups = run(held, ask)
    assert held.agents == ("debater 0", "debater 1")
    # Every second round begins with the policy that spoke last: one push of weights less.
    assert [(len(asked), params.n, params.policy) for asked, params in ask.calls] == [
        (2, 2, 0),
        (2, 2, 1),
        (4, 1, 1),
        (4, 1, 0),
        (4, 1, 0),
        (4, 1, 1),
    ]
    stream = (0, "rollout", 4)
    assert [params.stream for _, params in ask.calls] == [
        (*stream, "policy", 0),
        (*stream, "policy", 1),
        *[(*stream, "turn", 1)] * 2,
        *[(*stream, "turn", 2)] * 2,
    ]
    assert [asked.id.split("/")[2] for asked in ask.calls[2][0]] == ["1"] * 4
    for group in groups:
        turns = [c.turn for c in group.completions if c.turn is not None]
        assert [(t.trajectory, t.index, t.agent, t.policy) for t in turns] == [
            (trajectory, t, a, a) for trajectory in (0, 1) for t in range(3) for a in (0, 1)
        ]
        assert group.parts == [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]
        assert [c.text for c in group.completions[:2]] == ["answer 0", "answer 0"]
        assert [c.text for c in group.completions[6:8]] == ["answer 1", "answer 1"]


@pytest.mark.parametrize(
    ("workflow", "agents", "votes", "names", "asked"),
    [
        ("mixture", 2, 6, ("generator 0", "generator 1", "aggregator 0"), [0, 1, 2]),
        (
            "chain",
            4,
            8,
            ("generator 0", "verifier 0", "verifier 1", "refiner 0"),
            [0, 1, 2, 3],
        ),
    ],
)
def test_every_role_has_its_policy(
    workflow: str, agents: int, votes: int, names: tuple[str, ...], asked: list[int]
) -> None:
    held = per_agent(workflow, agents=agents, votes=votes)
    ask = Asked(lambda prompt, i: "7")
    (group,) = run(held, ask, QUESTIONS[:1])
    assert held.agents == names
    assert [params.policy for _, params in ask.calls] == asked
    each = [c.turn.policy for c in group.completions if c.turn]
    assert each == 2 * asked


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("role_free", ("generator 0", "agent 0", "agent 1", "agent 2")),
        ("verdict", ("generator 0", "verifier 0", "verifier 1", "refiner 0")),
    ],
)
def test_each_of_a_chain_has_its_policy_whatever_it_does(kind: str, names: tuple[str, ...]) -> None:
    made = settings("chain", agents=4, votes=8)
    own = made.agents.model_copy(update={"chain": kind})
    held = begun(made.model_copy(update={"agents": own}))
    assert tuple(name for (name,) in agents(held.plan)) == names


def test_each_group_is_told_of_where_every_agent_has_a_policy() -> None:
    told: list[str] = []
    for rank in (0, 1):
        held = per_agent(agents=2, rounds=2, votes=8)
        ask = Asked(lambda prompt, i: "7", rank, 2)
        held.run(ask, QUESTIONS, 4, lambda g: told.append(g.question.id))
    assert sorted(told) == ["q1", "q2"]
