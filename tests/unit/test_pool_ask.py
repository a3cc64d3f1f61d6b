"""What a workflow may ask of the pool, and what its answers say of how they were sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from groups import group

from ttrl.rollout.sampling import SamplingParams
from ttrl.rollout.workflows.checks import PoolAsk
from ttrl.types import CompletionGroup, Question, UserError

GROUP = group("7", "8")
USUAL = SamplingParams(n=2, temperature=1.0, max_new_tokens=8)


class Pool:
    """Answers everything with `GROUP`; notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[SamplingParams] = []

    def sample(
        self,
        questions: Sequence[Question],
        params: SamplingParams,
        on_group: Callable[[CompletionGroup], None],
        decided: object,
    ) -> list[CompletionGroup]:
        self.asked.append(params)
        on_group(GROUP)
        return [GROUP]


@pytest.mark.parametrize(("temperature", "said"), [(1.0, None), (0.5, 0.5)])
def test_answers_of_another_temperature_say_so(temperature: float, said: float | None) -> None:
    """In what is returned, and in what is told of before: the loss divides the logits by it."""
    pool, told = Pool(), list[CompletionGroup]()
    ask = PoolAsk(cast(Any, pool), temperature=1.0)
    found = ask([GROUP.question], replace(USUAL, temperature=temperature), told.append)
    assert found == told
    assert [c.temperature for c in found[0].completions] == [said, said]


def test_the_most_of_what_is_to_be_noted_is_noted() -> None:
    pool = Pool()
    ask = PoolAsk(cast(Any, pool), temperature=1.0, top_logprobs=4)
    for wanted in (0, 9):
        ask([GROUP.question], replace(USUAL, top_logprobs=wanted), lambda group: None)
    assert [params.top_logprobs for params in pool.asked] == [4, 9]


@pytest.mark.parametrize("drawn", [{"top_p": 0.9}, {"min_p": 0.1}, {"top_p": 0.9, "top_k": 10**6}])
def test_what_the_loss_could_not_know_is_refused(drawn: dict[str, Any]) -> None:
    ask = PoolAsk(cast(Any, Pool()), temperature=1.0)
    with pytest.raises(UserError, match=r"rollout\.workflow asks with top_p = "):
        ask([GROUP.question], replace(USUAL, **drawn), lambda group: None)
    ask([GROUP.question], replace(USUAL, **{**drawn, "top_k": 20}), lambda group: None)
