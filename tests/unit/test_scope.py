"""SCOPE: a label per sample, by hand, and against a slow twin."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from groups import completion, group, labelled_ballot, voted

from ttrl.answers import Grader
from ttrl.evaluation.metrics import labelled_metrics
from ttrl.rewards import make_estimator
from ttrl.rewards.estimators.subgroups import choose, confidence, elect, rewards_of
from ttrl.rewards.scorer import GroupScorer
from ttrl.settings.recipe import load_settings
from ttrl.system.rng import generator
from ttrl.types import AnswerKey, Completion, CompletionGroup, UserError
from ttrl.types.top_logprobs import TopLogprobs


def noted(of: Completion, *places: tuple[float, ...]) -> Completion:
    top = TopLogprobs.of((range(len(place)), place) for place in places)
    return replace(of, top_logprobs=top)


def sure(*answers: tuple[str | None, float]) -> CompletionGroup:
    """Answers, each with its confidence."""
    of = group(*(answer for answer, _ in answers))
    pairs = zip(of.completions, answers, strict=True)
    return replace(of, completions=tuple(noted(c, (-x,)) for c, (_, x) in pairs))


def test_confidence_is_the_mean_over_tokens_of_what_the_likeliest_lack() -> None:
    # (0.5 + 3.5) / 2 = 2; (1 + 2 + 6) / 3 = 3; 0.5
    of = noted(completion("x"), (-0.5, -3.5), (-1.0, -2.0, -6.0), (-0.5,))
    assert confidence(of) == pytest.approx((2 + 3 + 0.5) / 3)
    with pytest.raises(UserError, match="has not noted"):
        confidence(replace(completion("x"), top_logprobs=None))


def test_confidence_can_outweigh_a_majority() -> None:
    clusters, weights = (0, 0, 1, None, 0), (1.0, 1.0, 3.5, 9.0, 2.0)
    assert elect(clusters, weights, [0, 1, 2, 3]) == 1  # 2 against 3.5; the abstention has no vote
    assert elect(clusters, weights, [0, 1, 2, 4]) == 0  # 4 against 3.5
    assert elect(clusters, weights, [3]) is None
    assert elect((0, 1), (1.0, 1.0), [1, 0]) == 0


def test_each_answer_is_compared_with_its_own_label() -> None:
    assert rewards_of((0, 0, 1, None, 1), (0, 1, 1, None, None)) == [1.0, 0.0, 1.0, 0.0, 0.0]


def test_the_size_that_is_nearest_to_the_best_of_both() -> None:
    # Scaled: (0, 1), (0.5, 0.75), (0.4, 0.75), (1, 0). The third is worse than the second.
    points = [(0.2, 5.0), (0.4, 4.0), (0.36, 4.0), (0.6, 1.0)]
    # 0.7: sqrt(0.7) = 0.84; sqrt(0.7 * 0.25 + 0.3 * 0.0625) = 0.44; sqrt(0.3) = 0.55
    assert choose(points, 0.7) == 1
    assert choose(points, 1.0) == 3
    assert choose(points, 0.0) == 0
    assert choose([(0.5, 1.0), (0.5, 1.0)], 0.7) == 1  # of equal ones the last, the largest
    # Beaten points still count in the scale: without (0, 1) the others would be (0, 1) and (1, 0).
    # With it: (2/3, 1) and (1, 0): sqrt(0.7 / 9) = 0.28 against sqrt(0.3) = 0.55.
    assert choose([(0.0, 1.0), (0.4, 3.0), (0.6, 1.0)], 0.7) == 1


def test_a_group_of_answers_against_a_slow_twin() -> None:
    given = [(a, 1.0 + i / 8) for i, a in enumerate(["1", "2", "1", None, "3", "1", "2", "1"])]
    ballot = voted(sure(*given))
    found = make_estimator("scope", {"quality": 0.5}).estimate(ballot)
    rng = generator(0, "reward", 1, "q1")
    tried: dict[int, tuple[list[float], list[str | None]]] = {}
    for g in (1, 2, 4, 8):
        labels: list[str | None] = []
        for _ in range(8 // g):
            drawn = [given[i] for i in rng.permutation(8)[:4]]
            sums = {a: sum(x for b, x in drawn if b == a) for a, _ in drawn if a is not None}
            best = max(sorted(sums, key=["1", "2", "3"].index), key=sums.__getitem__, default=None)
            labels += [best] * g
        tried[g] = (
            [
                float(a == label and a is not None)
                for (a, _), label in zip(given, labels, strict=True)
            ],
            labels,
        )
    size = int(found.metrics["subgroup_size"])
    rewards, labels = tried[size]
    assert found.rewards_G == tuple(rewards)
    assert found.labels_G == tuple(labels)
    assert found.label in labels and labels.count(found.label) == found.confidence * 8
    assert found.metrics["token_confidence"] == pytest.approx(fmean(x for _, x in given))
    assert found.metrics["subgroup_labels"] == len({*labels} - {None})
    for other, (theirs, named) in tried.items():  # no other one is better in both
        more = (fmean(theirs) >= fmean(rewards), len({*named}) >= len({*labels}))
        strictly = (fmean(theirs), len({*named})) != (fmean(rewards), len({*labels}))
        assert not (all(more) and strictly) or other == size


def test_where_all_agree_all_labels_are_one() -> None:
    found = make_estimator("scope").estimate(voted(sure(*[("7", 1.0)] * 4)))
    assert found.rewards_G == (1.0,) * 4
    assert found.labels_G == ("7",) * 4
    assert found.metrics["subgroup_size"] == 4
    nobody = make_estimator("scope").estimate(voted(sure((None, 1.0), (None, 2.0))))
    assert (nobody.rewards_G, nobody.labels_G, nobody.label) == ((0.0, 0.0), (None, None), None)


def test_label_accuracy_counts_the_labels() -> None:
    of = sure(("7", 1.0), ("8", 1.0), ("8", 1.0), (None, 1.0))
    found = replace(
        make_estimator("majority").estimate(labelled_ballot(of, "8")),
        labels_G=("7", "7.0", "8", None),
    )
    metrics = labelled_metrics([of], [found], AnswerKey({"q1": "7"}), Grader(), [[0, 1, 2, 3]])
    assert metrics["label/label_accuracy"] == 0.5
    assert metrics["label/ground_truth_reward"] == 0.25


@pytest.mark.parametrize(
    ("labels", "words"),
    [("('1',)", "labels_G has 1 entries for 2 completions"), ("('1', 2)", "label = 2, expected")],
)
def test_labels_that_do_not_fit(labels: str, words: str, tmp_path: Any) -> None:
    (tmp_path / "mine.py").write_text(
        "from ttrl.types import Estimate\n"
        "class Mine:\n"
        "    def estimate(self, voted):\n"
        f"        return Estimate(voted.vote, (1.0, 0.0), None, labels_G={labels})\n"
    )
    settings = load_settings(
        "tiny-arithmetic", overrides=[f"reward.estimator={tmp_path / 'mine.py'}:Mine"]
    )
    with pytest.raises(UserError, match=words):
        GroupScorer(settings, Grader(settings.answers)).estimate(group("1", "2"), None, 1)
