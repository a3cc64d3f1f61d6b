"""Stopping early, replayed from whole answers: by hand, and against slow twins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from test_selection_rules import candidates

from ttrl.selection.candidates import NONE, Candidates
from ttrl.selection.stopping import SAME, GroupConfidences, stopped_by_confidence, stopped_by_vote
from ttrl.settings import SelectionSettings


def in_order(c: Candidates) -> np.ndarray:
    return np.arange(len(c))


def test_a_settled_vote_stops() -> None:
    """Rounds of two: 2-0 leads by 2 with 6 to come, 4-0 by 4 with 4, 6-0 by 6 with 2."""
    found = candidates(["7"] * 6 + ["8"] * 2)
    end = stopped_by_vote(found, in_order(found))
    assert (end.chosen, end.answers, end.tokens) == (0, 6, 60.0)


def test_a_vote_that_may_still_be_tied_goes_on() -> None:
    """After six answers 7 leads 4-2, and two may follow: to the end."""
    found = candidates(["7", "7", "8", "7", "8", "7", "8", "8"])
    end = stopped_by_vote(found, in_order(found))
    assert (end.chosen, end.answers) == (0, 8)  # 4-4: 7 is first
    none = candidates([None] * 4)
    assert stopped_by_vote(none, in_order(none)).chosen == NONE


@pytest.mark.parametrize("seed", range(20))
def test_it_chooses_what_all_answers_choose(seed: int) -> None:
    rng = np.random.default_rng(seed)
    said = [("7", "8", "9", None)[i] for i in rng.choice(4, 23, p=[0.5, 0.2, 0.2, 0.1])]
    found = candidates(said)
    end = stopped_by_vote(found, rng.permutation(23))
    assert end.chosen == np.bincount(found.class_N[found.class_N != NONE]).argmax()


def test_where_an_answer_is_broken_off() -> None:
    """Groups of two: 3, 2, 1.5, 5. Below 2.5 the second is the first, with the third token."""
    watched = GroupConfidences([4, 2, 2, 1, 9], 2)
    assert watched.lowest == 1.5
    assert watched.tokens_until(1.5) == 5
    assert watched.tokens_until(1.6) == 4
    assert watched.tokens_until(2.5) == 3
    assert watched.tokens_until(9.0) == 2
    assert GroupConfidences([1, 2], 2).tokens_until(9.0) == 2  # its only group ends where it does
    assert GroupConfidences([1], 2).tokens_until(9.0) == 1


CONFIDENCE = ([5, 5, 5], [4, 4, 4], [6, 6, 6], [3, 9, 9], [7, 4, 1], [8, 8, 8])
"""Of the answers 7, 8, 7, 8, 8, 7; groups are of one token."""


def settings(**given: object) -> SelectionSettings:
    options = {"warm_up": 2, "warm_up_keep": 0.5, "window": 1, "consensus": 1.0}
    return SelectionSettings.model_validate({**options, **given})


def replayed(confidences: Sequence[Sequence[float]], **given: object) -> tuple[int, int, float]:
    chosen = settings(**given)
    found = candidates(["7", "8", "7", "8", "8", "7"][: len(confidences)])
    means = np.array([float(np.mean(c)) for c in confidences])
    found = Candidates(
        **{
            **vars(found),
            "tokens_N": np.array([float(len(c)) for c in confidences]),
            "scores_N": {"confidence": means},
        }
    )
    watched = [GroupConfidences(c, chosen.window) for c in confidences]
    end = stopped_by_confidence(found, watched, in_order(found), chosen)
    return end.chosen, end.answers, end.tokens


def test_online_confidence_by_hand() -> None:
    """The median of the lowest groups 5 and 4 is 4.5.

    So the second does not vote, and after the warm-up all votes agree. That ends it.
    """
    assert replayed(CONFIDENCE) == (0, 2, 6.0)


def test_without_a_consensus_answers_are_broken_off() -> None:
    """Threshold 4 (all of the warm-up): votes 7: 5 + 6 + 8 = 19, 8: 4.

    The fourth ends with its first token, the fifth with its third: 3 + 3 + 3 + 1 + 3 + 3.
    """
    assert replayed(CONFIDENCE, warm_up_keep=1.0) == (0, 6, 16.0)


def test_a_consensus_is_a_share_of_confidence() -> None:
    """After the warm-up 7 has 5 of 9 = 0.556; with the third answer 11 of 15 = 0.733."""
    assert replayed(CONFIDENCE, warm_up_keep=1.0, consensus=0.55) == (0, 2, 6.0)
    assert replayed(CONFIDENCE, warm_up_keep=1.0, consensus=0.56) == (0, 3, 9.0)
    assert replayed(CONFIDENCE, warm_up_keep=1.0, consensus=0.74) == (0, 6, 16.0)


def test_answers_that_nothing_is_read_from_do_not_vote() -> None:
    found = candidates([None, None, None]).scored("confidence", np.ones(3))
    watched = [GroupConfidences([1.0], 1)] * 3
    end = stopped_by_confidence(found, watched, in_order(found), settings())
    assert (end.chosen, end.answers) == (NONE, 3)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("window", [1, 3, 50])
@pytest.mark.parametrize("at_once", [1, 3])
def test_the_replay_is_what_a_sampler_would_do(seed: int, window: int, at_once: int) -> None:
    rng = np.random.default_rng(seed)
    said = [("7", "8", None)[i] for i in rng.integers(0, 3, 12)]
    traces = [rng.random(rng.integers(1, 9)).round(2).tolist() for _ in said]
    chosen = settings(window=window, warm_up=4, warm_up_keep=0.7, consensus=0.8, at_once=at_once)
    found = candidates(said)
    found = Candidates(**{**vars(found), "tokens_N": np.array([float(len(t)) for t in traces])})
    found = found.scored("confidence", np.array([float(np.mean(t)) for t in traces]))
    watched = [GroupConfidences(t, window) for t in traces]
    order = rng.permutation(12)
    end = stopped_by_confidence(found, watched, order, chosen)
    assert (end.chosen, end.answers, end.tokens) == sampled(found, traces, order, chosen)


def sampled(
    found: Candidates, traces: Sequence[Sequence[float]], order: np.ndarray, s: SelectionSettings
) -> tuple[int, int, float]:
    """Sample token by token, and look at each group when it is whole."""

    def lowest(trace: Sequence[float]) -> float:
        width = min(s.window, len(trace))
        sums = [sum(trace[i : i + width]) / width for i in range(len(trace) - width + 1)]
        return min(sums)

    warm = [lowest(traces[i]) for i in order[: s.warm_up]]
    threshold = np.percentile(warm, 100 * (1 - s.warm_up_keep)) - SAME
    votes: dict[int, float] = {}
    tokens = 0
    for number, i in enumerate(order):
        total = sum(votes.values())
        agree = total > 0 and max(votes.values()) >= s.consensus * total - 1e-9
        if number >= s.warm_up and (number - s.warm_up) % s.at_once == 0 and agree:
            break
        went_on = True
        for length in range(1, len(traces[i]) + 1):
            tokens += 1
            group = traces[i][length - s.window : length]
            if number >= s.warm_up and length >= s.window and sum(group) / s.window < threshold:
                went_on = False
                break
        voter = went_on and lowest(traces[i]) >= threshold and found.class_N[i] != NONE
        if voter:
            c = int(found.class_N[i])
            votes[c] = votes.get(c, 0.0) + found.scores_N["confidence"][i]
    else:
        number += 1
    best = max(votes.values(), default=0.0)
    chosen = min((c for c, v in votes.items() if v >= best - 1e-9), default=NONE)
    return chosen, number, float(tokens)
