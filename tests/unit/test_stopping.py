"""When votes end a run: passes of two steps, rated by hand."""

from __future__ import annotations

import json

import pytest

from ttrl.evaluation.stopping import StoppingRule
from ttrl.settings import StoppingSettings
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError


def rule(**settings: object) -> StoppingRule:
    return StoppingRule(StoppingSettings.model_validate({"by_votes": True, **settings}), 2)


def ends(watch: StoppingRule, *passes: tuple[float, float | None], first: int = 1) -> list[object]:
    """What is said after each step of passes with these majority ratios and flip rates."""
    said: list[object] = []
    for step, (ratio, flips) in enumerate((p for p in passes for _ in range(2)), first):
        known = {} if flips is None else {"vote/flip_rate": flips}
        said.append(watch.after_step(step, {"vote/majority_ratio": ratio, **known}))
    return said


def test_a_pass_is_rated_by_what_the_next_confirms() -> None:
    watch = rule()
    assert ends(watch, (0.4, None), (0.6, 0.25), (0.8, 0.1)) == [None] * 6
    # pass 1: 0.4 x 0.75 = 0.3, less than the 0.4 of step 1; pass 2: 0.6 x 0.9 = 0.54
    assert (watch.best, watch.promoted) == (4, True)
    assert watch.state()["rating"] == pytest.approx(0.54)
    assert watch.state()["worse"] == 0


def test_passes_that_are_no_better_end_it() -> None:
    watch = rule()
    *before, last = ends(watch, (0.6, None), (0.6, 0.5), (0.6, 0.5))
    assert before == [None] * 5  # 0.3 and 0.3 are no better than 0.6
    assert last is not None and last.goes_back and watch.best == 0  # type: ignore[attr-defined]
    assert "2 passes in a row were no better than the votes of step 0 (rated 0.60" in last.reason  # type: ignore[attr-defined]


def test_settled_votes_end_it_where_it_is() -> None:
    *before, last = ends(rule(), (0.9, None), (0.96, 0.04))
    assert before == [None] * 3
    assert last is not None and not last.goes_back  # type: ignore[attr-defined]
    assert "majority had 96% of them, and 4% of the labels changed" in last.reason  # type: ignore[attr-defined]
    assert ends(rule(), (0.9, None), (0.96, 0.06))[-1] is None
    assert ends(rule(), (0.9, None), (0.94, 0.0))[-1] is None


def test_a_collapse_ends_it_at_once() -> None:
    ending = rule().after_step(1, {"vote/majority_ratio": 0.5, "guard/collapse": 1.0})
    assert ending is not None and ending.goes_back


def test_what_was_saved_goes_on_the_same() -> None:
    passes = [(0.6, None), (0.6, 0.5), (0.6, 0.5)]
    whole = ends(rule(), *passes)
    first, second = rule(), rule()
    ends(first, *passes[:2])
    second.load_state(json.loads(json.dumps(first.state())))
    assert ends(second, passes[2], first=5) == whole[4:]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["stopping.share=0.9"], r"\[stopping\] needs stopping.by_votes = true"),
        (["stopping.by_votes=true", "guard.on_collapse=stop"], "to others: leave that at"),
    ],
)
def test_settings_that_cannot_work_are_refused(given: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_settings("tiny-arithmetic", overrides=given)
