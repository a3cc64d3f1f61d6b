"""Signs of a collapse, from made-up curves, and the way back."""

from __future__ import annotations

import pytest

from ttrl.evaluation.guard import CollapseGuard, MismatchGuard
from ttrl.settings import GuardSettings

HEALTHY = {
    "vote/majority_ratio": 0.4,
    "vote/distinct_answers": 20.0,
    "rollout/response_tokens_mean": 50.0,
    "policy/entropy": 0.5,
}


def guard(**settings: object) -> CollapseGuard:
    return CollapseGuard(GuardSettings.model_validate(settings), steps_per_pass=2)


def signs(watch: CollapseGuard, *steps: dict[str, float]) -> list[str | None]:
    return [watch.sign({**HEALTHY, **step}) for step in steps]


def test_learning_is_no_collapse() -> None:
    better = {
        "vote/majority_ratio": 0.9,
        "vote/distinct_answers": 5.0,
        "policy/entropy": 0.1,
        "vote/flip_rate": 0.1,
    }
    assert signs(guard(), {}, {}, better, better, better) == [None] * 5


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("vote/distinct_answers", 1.9, "distinct answers per question fell from 20 to 1.9"),
        ("rollout/response_tokens_mean", 19.0, "response tokens fell from 50 to 19"),
        ("policy/entropy", 0.02, "entropy fell from 0.5 to 0.02"),
    ],
)
def test_agreement_up_and_something_gone(name: str, value: float, words: str) -> None:
    step = {"vote/majority_ratio": 0.9, name: value}
    *before, last = signs(guard(), {}, {}, step, step)
    assert before == [None, None, None]  # the mean over a pass is not there yet after one step
    assert last is not None and words in last
    lower = {"vote/majority_ratio": 0.45, name: value}  # without a rise in agreement: no sign
    assert signs(guard(), {}, {}, lower, lower) == [None] * 4


def test_the_entropy_of_each_agent_counts() -> None:
    step = {"vote/majority_ratio": 0.9, "agent_1/entropy": 0.02}
    watch = CollapseGuard(GuardSettings(), 2, ("agent_1",))
    *_, last = signs(watch, *[{"agent_1/entropy": 0.5}] * 2, step, step)
    assert last is not None and "entropy of agent_1 fell from 0.5 to 0.02" in last
    assert "agent_1/entropy" in watch.state()["window"][-1]
    assert signs(guard(), *[{"agent_1/entropy": 0.5}] * 2, step, step) == [None] * 4


def test_flipping_labels() -> None:
    flips = [{"vote/flip_rate": rate} for rate in (0.4, 0.8)]
    *before, last = signs(guard(), {}, {}, *flips)
    assert before == [None] * 3  # the third step's pass holds a step without a flip rate
    assert last is not None and last.startswith("over the last pass 60% of the labels changed")
    assert signs(guard(flip_rate=0.7), {}, {}, *flips)[-1] is None


def test_each_alarm_is_new_once() -> None:
    watch, new = guard(), []
    for rate in (0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0):
        watch.sign({**HEALTHY, "vote/flip_rate": rate})
        new.append(watch.is_new)
    # Means over two steps: 0, 0.5, 1, 1, 0.5, 0, 0.5, 1; a mean of 0.5 is not above the limit.
    assert new == [False, False, False, True, False, False, False, False, True]


def test_ignored_if_asked_to() -> None:
    flips = {"vote/flip_rate": 1.0}
    assert signs(guard(on_collapse="ignore"), flips, flips, flips) == [None] * 3


def mismatch(kl: float) -> dict[str, float]:
    return {"mismatch/kl": kl, "mismatch/max_log_ratio": 1.5}


def test_a_mismatch_is_said_once_per_run_of_alarms() -> None:
    watch = MismatchGuard(0.1)
    steps = [mismatch(kl) for kl in (0.05, 0.2, 0.3)]
    steps += [{}, mismatch(0.2), mismatch(0.1), mismatch(0.2)]  # {}: nothing was trained on
    said = [watch.warning(step) for step in steps]
    assert [text is not None for text in said] == [False, True, *[False] * 4, True]
    assert said[1] is not None
    assert "KL 0.2 nats per token, largest |log-ratio| 1.5 (guard.sampler_kl = 0.1)" in said[1]
    assert [watch.is_off(step) for step in steps] == [False, True, True, False, True, False, True]
    assert not watch.is_off({**mismatch(9.0), "rollout/updates_behind": 1})  # overlap
    silent = MismatchGuard(0.0)
    assert silent.warning(mismatch(9.0)) is None and not silent.is_off(mismatch(9.0))
