"""Runs of every kind on the real vLLM: agents, streams, posed questions, search; see
``runs_facts.py``."""

from __future__ import annotations

from typing import Any

import pytest
from runs_facts import RUNS, WORKFLOWS

EXACT = 1e-3
"""Nats, float32: what is posed has tokens that are nearly never drawn. A wrong prompt, a stale
cache or other weights are off by thirty times as much, or more."""
CLOSE = 1e-4
"""The same of likely tokens."""


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_in_every_turn_engine_and_policy_agree(runs: Any, workflow: str) -> None:
    assert 0 < runs["agents"][workflow]["gap"] < EXACT
    assert 0 <= runs["agents"][workflow]["outcome"] <= 1


def test_a_debate_goes_on_and_is_replayed_bit_for_bit(runs: Any) -> None:
    assert runs["agents"]["resumed"]
    assert runs["agents"]["replayed"]


def test_the_engine_is_at_the_weights_of_who_speaks(runs: Any) -> None:
    """Also in the second step, when the agents' weights lie far apart."""
    assert len(runs["per_agent"]) == 2
    for step in runs["per_agent"]:
        assert step["policy/updates"] == step["agent_1/updates"] == 1
        assert step["policy/sampler_max_gap"] < CLOSE
        assert step["agent_1/sampler_max_gap"] < CLOSE


@pytest.mark.parametrize("name", RUNS)
def test_what_is_sampled_is_what_is_trained(runs: Any, name: str) -> None:
    assert 0 < runs["runs"][name]["gap"] < EXACT


def test_each_algorithm_has_its_figures(runs: Any) -> None:
    last = {name: run["last"] for name, run in runs["runs"].items()}
    assert last["ppo_filters_lora"]["critic/updates"] == 1
    assert last["prime"]["prm/updates"] == 1
    assert 0 <= last["remax"]["reward/greedy_reward"] <= 1
    assert last["resampled"]["rollout/questions"] > 4


def test_a_stream_is_answered_in_its_order(runs: Any) -> None:
    found = runs["streams"]["kept"]
    assert found["gap"] < EXACT
    assert [x["id"] for x in found["answers"]] == runs["streams"]["ids"]
    assert [x["updates"] for x in found["answers"]] == [0, *cumulated(found["updates"])[:2]]


def test_after_each_question_the_engine_has_the_first_adapters_again(runs: Any) -> None:
    """The gap is also of the first visit to a question, after the adapters were put back."""
    found, adapted = runs["streams"]["reset"], runs["streams"]["adapted"]
    assert found["gap"] < EXACT
    assert [x["updates"] for x in found["answers"]] == [0, 0, 0]
    first = runs["streams"]["kept"]["answers"][0]  # of the same weights, and nothing learned yet
    assert found["answers"][0]["response"] == first["response"]
    assert [x["id"] for x in adapted] == runs["streams"]["ids"]
    assert [x["share"] for x in adapted] != [x["share"] for x in found["answers"]]
    assert runs["streams"]["is_the_base"]


def cumulated(counts: list[float]) -> list[float]:
    return [sum(counts[: i + 1]) for i in range(len(counts))]


def test_questions_are_posed_asked_and_gone_on_with(runs: Any) -> None:
    found = runs["posed"]
    assert found["gap"] < EXACT
    assert all(line["posed/asked"] > 0 for line in found["lines"])
    assert found["resumed"]


def test_answers_from_a_file_are_chosen_among_alike(runs: Any) -> None:
    sampled, read = (runs["measured"][name]["selection"] for name in ("vllm", "from_samples"))
    curves = {curve["name"]: curve for curve in sampled["curves"]}
    assert curves.pop("reflection")["points"]
    assert list(curves.values()) == read["curves"]
    assert sampled["stops"] == read["stops"]


def test_its_answers_are_those_of_the_other_engine_where_nothing_is_drawn(runs: Any) -> None:
    """And what is known of a token is the same where both have drawn the same text."""
    ours, theirs = (
        {line["question"]: line for line in runs["measured"][f"{name}_answers"]}
        for name in ("vllm", "other")
    )
    assert ours.keys() == theirs.keys()
    for question, line in ours.items():
        other = theirs[question]
        assert line["greedy"] == {**other["greedy"], "surprisal": 0.0}
    compared = 0
    for question, line in ours.items():
        said = {x["text"]: x for x in theirs[question]["completions"]}
        for answer in line["completions"]:
            if (other := said.get(answer["text"])) is not None:
                compared += 1
                assert answer["surprisal"] == pytest.approx(other["surprisal"], abs=CLOSE)
                noted, known = (x["confidence"] for x in (answer, other))
                assert noted["likeliest"] == known["likeliest"] == 20
                # Written down with four digits.
                assert noted["tokens"] == pytest.approx(known["tokens"], abs=5e-4)
    assert compared > 30


@pytest.mark.parametrize("kind", ["beam", "dvts"])
def test_paths_are_prompts_that_it_goes_on_with(runs: Any, kind: str) -> None:
    """Log-probs of every step are those of a plain forward over question and path."""
    found = runs["searched"][kind]
    assert found["gap"] < CLOSE
    assert found["again"]
    assert min(found["solutions"]) >= (4 if kind == "beam" else 2)
    assert found["longest_path"] > found["prompts"]
    assert found["steps"] > 12
    assert found["too_long"] == 0


def test_a_closed_engine_leaves_room_for_another(runs: Any) -> None:
    """As in ``ttrl scale``, whose training comes after what is measured of the untrained model."""
    assert runs["gone"]
    assert runs["started_again"]["gap"] < EXACT
