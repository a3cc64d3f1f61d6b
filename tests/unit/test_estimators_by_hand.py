"""What each reward estimator pays, against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from groups import estimate, group, labelled_ballot, voted

from ttrl.answers import default_grader
from ttrl.rewards import make_estimator
from ttrl.rewards.estimators.novelty import ngram_similarity
from ttrl.rewards.vote import majority_vote
from ttrl.settings.recipe import load_settings
from ttrl.types import (
    Completion,
    CompletionGroup,
    Estimate,
    FinishReason,
    PastVote,
    Question,
    UserError,
    VotedGroup,
)


def labelled(of: CompletionGroup, label: str | None, name: str, **options: Any) -> Estimate:
    return make_estimator(name, options).estimate(labelled_ballot(of, label))


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[..., str]:
    """Writes a function's body to a file, and names it."""

    def write(body: str, arguments: str = "prompt, text") -> str:
        path = tmp_path / "user.py"
        path.write_text(f"def function({arguments}):\n    {body}\n", encoding="utf-8")
        return f"{path}:function"

    return write


# ---------------------------------------------------------------------------------------------
# majority, random


def test_majority_pays_the_winning_class_whatever_its_spelling() -> None:
    found = estimate(group("1/2", "3", "0.5", None, r"\frac12"))
    assert found.rewards_G == (1.0, 0.0, 1.0, 0.0, 1.0)
    assert found.label == "0.5"
    assert found.confidence == found.vote.majority_ratio == 0.6
    assert found.vote.clusters_G == (0, 1, 0, None, 0)
    assert (found.advantages_G, found.keep_G, found.weight) == (None, None, 1.0)


def test_majority_of_empty_boxes_is_no_majority() -> None:
    assert estimate(group("", None, "", "", "4")).rewards_G == (0.0, 0.0, 0.0, 0.0, 1.0)
    assert estimate(group("", None, "", "", "4")).label == "4"


def test_majority_pays_agreement_with_whatever_label_there_is() -> None:
    assert labelled(group("7", "7", "8"), "8.0", "majority").rewards_G == (0.0, 0.0, 1.0)
    assert labelled(group("7", "7", "8"), "9", "majority").rewards_G == (0.0, 0.0, 0.0)
    assert labelled(group("7", "7", "8"), None, "majority").rewards_G == (0.0, 0.0, 0.0)


def test_random_is_a_coin_that_sees_no_answer() -> None:
    some, others = group(*["7"] * 40, *[None] * 24), group(*[str(i) for i in range(64)])
    first = estimate(some, "random")
    assert first.rewards_G == estimate(others, "random").rewards_G
    assert estimate(some, "random", p=0).rewards_G == (0.0,) * 64
    assert estimate(some, "random", p=1).rewards_G == (1.0,) * 64
    coin = make_estimator("random", {"p": 0.25})
    rewards = [r for s in range(100) for r in coin.estimate(voted(some, step=s)).rewards_G]
    # 6400 draws: standard deviation sqrt(0.25 * 0.75 / 6400) = 0.0054
    assert set(rewards) == {0.0, 1.0}
    assert sum(rewards) / 6400 == pytest.approx(0.25, abs=0.02)


# ---------------------------------------------------------------------------------------------
# soft, confidence


def test_soft_pays_each_answer_its_share_of_all_votes() -> None:
    found = estimate(group("7", "8", "7.0", None), "soft")
    assert found.rewards_G == (0.5, 0.25, 0.5, 0.0)
    assert (found.label, found.weight, found.confidence) == ("7", 1.0, 0.5)
    # Whatever other label there is, it is not looked at.
    assert labelled(group("7", "8", "7.0", None), "8", "soft") == found


@pytest.mark.parametrize(
    ("low", "high", "weight"), [(0.6, 0.7, 1), (0.0, 0.6, 0), (0.7, 2.0, 0), (0.0, None, 1)]
)
def test_soft_trains_inside_its_band(low: float, high: float | None, weight: float) -> None:
    # Two voters in three and one in three: ln 3 - (2/3) ln 2 = 0.6365. The abstention has no part.
    options = {"min_entropy": low} | ({} if high is None else {"max_entropy": high})
    found = estimate(group("7", "8", "7.0", None), "soft", **options)
    assert (found.weight, found.metrics["in_band"]) == (weight, weight)


QUARTER, HALF, THREE_QUARTERS = math.log(4 / 3), math.log(2), math.log(4)
"""Surprisals whose uncertainty 1 - exp(-surprisal) is that."""


def test_confidence_weighs_by_certainty_and_adds_a_bonus_for_rarity() -> None:
    of = group("7", "7.0", "8", None, surprisals=[QUARTER, QUARTER, THREE_QUARTERS, HALF])
    # p ∝ 2 / (0.25 + 0.25) = 4 and 1 / (0.75 + 0.25) = 1; three voters.
    # 7: 0.8 + 0.5 (1 - 2/3) 0.75 = 0.925; 8: 0.2 + 0.5 (1 - 1/3) 0.25 = 0.28333
    found = estimate(of, "confidence", alpha=0.5, epsilon=0.25)
    assert found.rewards_G == pytest.approx((0.925, 0.925, 0.2 + 1 / 12, 0.0))
    assert found.label == "7"
    assert found.confidence == pytest.approx(0.8)
    assert found.metrics == pytest.approx({"uncertainty": 0.4375, "pruned_share": 0})


def test_confidence_prunes_and_normalises_again() -> None:
    of = group("7", "7.0", "8", None, surprisals=[QUARTER, QUARTER, THREE_QUARTERS, HALF])
    # 8 (0.2) goes; then 7 has p = 1, and is everybody who is left, so there is no bonus.
    found = estimate(of, "confidence", alpha=0.5, epsilon=0.25, tau=0.25)
    assert found.rewards_G == pytest.approx((1.0, 1.0, 0.0, 0.0))
    assert found.metrics["pruned_share"] == 0.25
    nobody = estimate(of, "confidence", epsilon=0.25, tau=0.9)
    assert (nobody.rewards_G, nobody.label, nobody.confidence) == ((0.0,) * 4, None, 0.0)


def test_confidence_may_overrule_the_majority() -> None:
    # p ∝ 2 / (0.75 + 0.25) = 2 and 1 / (0 + 0.25) = 4
    of = group("7", "7", "8", surprisals=[THREE_QUARTERS, THREE_QUARTERS, 0.0])
    found = estimate(of, "confidence", alpha=0, epsilon=0.25)
    assert found.rewards_G == pytest.approx((1 / 3, 1 / 3, 2 / 3))
    assert found.label == "8"


# ---------------------------------------------------------------------------------------------
# scrl, restrain


TEN = ("7", "7", "7", "7.0", "7", "7", "8", "8", "9", None)


def test_scrl_rewards_a_clear_consensus_and_punishes_rare_doubtful_answers() -> None:
    # 7: share 0.6, lead 0.4. 9: share 0.1 < 0.15, and 1.0 >= mean surprisal (9 * 0.5 + 1) / 10.
    found = estimate(group(*TEN, surprisals=[*[0.5] * 8, 1.0, 0.5]), "scrl")
    assert found.rewards_G == (1, 1, 1, 1, 1, 1, 0, 0, -1, 0)
    assert (found.label, found.confidence) == ("7", 0.6)
    assert found.metrics == {"believed": 1.0, "negative_share": 0.1}


def test_scrl_leaves_rare_answers_alone_that_the_model_is_sure_of() -> None:
    found = estimate(group(*TEN, surprisals=[*[0.5] * 8, 0.1, 0.5]), "scrl")
    assert found.rewards_G == (1, 1, 1, 1, 1, 1, 0, 0, 0, 0)


def test_scrl_abstains_without_consensus() -> None:
    # 5 of 8 against 3 of 8: share 0.625, lead 0.25
    of = group("7", "7", "8", "7", "8", "7", "8", "7")
    assert estimate(of, "scrl", tau_margin=0.2).rewards_G == (1, 1, 0, 1, 0, 1, 0, 1)
    assert estimate(of, "scrl", tau_pos=0.625).metrics["believed"] == 1
    for options in ({"tau_margin": 0.25}, {"tau_pos": 0.63}):
        found = estimate(of, "scrl", **options)
        assert (found.rewards_G, found.label) == ((0,) * 8, None)


def test_scrl_of_scattered_votes_is_all_negative() -> None:
    # eight shares of 0.125 < 0.15, all as doubtful as the group
    found = estimate(group(*"12345678"), "scrl")
    assert (found.rewards_G, found.label) == ((-1,) * 8, None)
    assert not any(math.copysign(1, r) < 0 for r in estimate(group(*TEN[:8]), "scrl").rewards_G)


def test_scrl_wants_the_voters_behind_a_label_from_elsewhere() -> None:
    of = group(*TEN)
    assert labelled(of, "7", "scrl") == estimate(of, "scrl")
    for label in ("8", "5", None):  # few voters, none, and no label
        found = labelled(of, label, "scrl")
        assert max(found.rewards_G) == 0
        assert found.label is None


def test_restrain_sums_the_advantages_of_all_pseudo_labels() -> None:
    # With sigma = 1/2, w ratio exp(-(0.5625 - 0.0625) / 0.5) = 1/e: w = 0.731059, 0.268941.
    # A for 7: (1/2, 1/2, 1/2, -3/2); for 8: the opposite. So (w1 - w2) = 0.462117 times that.
    found = estimate(group("7", "8", "7.0", "7"), "restrain", sigma=0.5)
    assert found.rewards_G == pytest.approx((0.731059, 0.268941, 0.731059, 0.731059), rel=1e-5)
    assert found.advantages_G == pytest.approx((0.231059, -0.693176, 0.231059, 0.231059), rel=1e-4)
    assert found.weight == pytest.approx(0.882497)  # exp(-0.0625 / 0.5)
    assert found.metrics == {"penalized": 0.0}


def test_restrain_weighs_a_question_by_its_first_vote() -> None:
    of = voted(group("7", "7", "7"), history=(PastVote(1, "8", 0.5), PastVote(2, "7", 0.9)))
    found = make_estimator("restrain", {"sigma": 0.5}).estimate(of)
    assert found.weight == pytest.approx(0.606531)  # exp(-0.25 / 0.5)


def test_restrain_punishes_everybody_where_too_few_agree() -> None:
    of = group("7", "8", "7", None)
    found = estimate(of, "restrain", kappa=3, delta=0.5)
    assert (found.rewards_G, found.advantages_G) == ((0.0,) * 4, (-0.5,) * 4)
    assert (found.label, found.metrics) == ("7", {"penalized": 1.0})
    assert estimate(of, "restrain", kappa=2).metrics == {"penalized": 0.0}


def test_restrain_of_abstentions_and_of_a_tiny_sigma() -> None:
    # One pseudo-label, so w = 1: rewards 1 1 1 0, mean 3/4, standard deviation 1/2
    found = estimate(group("7", "7", "7", None), "restrain", sigma=1e-3)
    assert found.rewards_G == (1.0, 1.0, 1.0, 0.0)
    assert found.advantages_G == pytest.approx((0.5, 0.5, 0.5, -1.5), rel=1e-5)
    assert estimate(group("7", "7", "7"), "restrain").advantages_G == (0.0, 0.0, 0.0)


# ---------------------------------------------------------------------------------------------
# ddrl


EIGHT = ("7", "8", "7", "8", "7", "9", "7", None)


def test_ddrl_keeps_the_first_that_agree_and_the_rarest_that_do_not() -> None:
    # k / 2 = 2 of the four 7s; of the others the abstention and the single 9, before the 8s.
    found = estimate(group(*EIGHT), "ddrl", k=4)
    assert found.keep_G == (True, False, True, False, False, True, False, True)
    assert found.advantages_G == (1, -1, 1, -1, 1, -1, 1, -1)
    assert found.rewards_G == (1, 0, 1, 0, 1, 0, 1, 0)
    assert found.metrics == {"kept_agreeing": 2.0, "kept_others": 2.0}


def test_ddrl_with_few_of_a_kind() -> None:
    # One agrees with 9, so that K⁻ = 3: the abstention, then the 8s.
    few = labelled(group(*EIGHT), "9", "ddrl", k=4)
    assert few.keep_G == (False, True, False, True, False, True, False, True)
    # All agree: K⁺ = 2, and there is nobody to disagree.
    assert estimate(group("7", "7", "7", "7"), "ddrl", k=4).keep_G == (True, True, False, False)


def test_ddrl_without_a_label_teaches_nothing() -> None:
    assert labelled(group("7", "8"), None, "ddrl", k=2).advantages_G == (0.0, 0.0)
    assert estimate(group(None, None), "ddrl", k=2).advantages_G == (0.0, 0.0)


def test_ddrl_needs_a_group_of_k() -> None:
    with pytest.raises(UserError, match=r"reward.options.k = 32 is more than the 2 completions"):
        estimate(group("7", "8"), "ddrl")


# ---------------------------------------------------------------------------------------------
# evol


def test_evol_bands_and_novelty(plugin: Callable[..., str]) -> None:
    # Own-band means 0.5, 0.6, 0.3 and maxima 0.8, 0.8, 0.6 give u = 0.35, 0.3, 0.55, which is
    # 0.2, 0, 1 of the band; the 8 is alone in its band.
    matrix = "[[1, .8, .2, .4], [.8, 1, .4, 0], [.2, .4, 1, .6], [.4, 0, .6, 1]]"
    similarity = plugin(f"return {matrix}", "texts")
    found = estimate(group("7", "7", "7.0", "8", None), "evol", similarity=similarity)
    assert found.rewards_G == pytest.approx((0.6, 0.5, 1.0, -0.5, -1.0))
    # u of the 8: mean to all others 1/3, maximum 0.6: 0.53333
    assert found.metrics == {"novelty": pytest.approx((0.35 + 0.3 + 0.55 + 8 / 15) / 4)}
    assert found.label == "7"


def test_evol_of_equal_texts_and_of_lone_ones() -> None:
    assert estimate(group("7", "7", "8", "8"), "evol").rewards_G == (0.75, 0.75, -0.75, -0.75)
    assert estimate(group("7", None), "evol").rewards_G == (1.0, -1.0)
    assert estimate(group(None, None), "evol").rewards_G == (-1.0, -1.0)
    assert labelled(group("7", "7"), "8", "evol").rewards_G == (-0.75, -0.75)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [[1]]", "expected 2 x 2 numbers from 0 to 1, got an array of shape (1, 1)"),
        ("return [[1, 2], [2, 1]]", "with values from 1.0 to 2.0"),
        ("return [[1, float('nan')]] * 2", "expected 2 x 2 numbers"),
        ("return 'abc'", "could not convert string to float"),
        ("return None", "expected 2 x 2 numbers"),
    ],
)
def test_evol_checks_a_users_similarities(
    plugin: Callable[..., str], body: str, message: str
) -> None:
    name = plugin(body, "texts")
    with pytest.raises(UserError) as error:
        estimate(group("7", "8"), "evol", similarity=name)
    assert f"reward.options.similarity = {name!r}: " in str(error.value)
    assert message in str(error.value)


def test_evol_names_the_line_where_a_users_similarity_fails(plugin: Callable[..., str]) -> None:
    with pytest.raises(UserError, match=r"failed with KeyError: 1 \(.*\.py:\d+\)"):
        estimate(group("7", "8"), "evol", similarity=plugin("raise KeyError(1)", "texts"))


def test_a_missing_similarity_is_noticed_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reward.options.similarity = .*no file at"):
        make_estimator("evol", {"similarity": f"{tmp_path}/absent.py:f"})


def test_ngram_similarity_is_shared_over_all() -> None:
    # 8-byte substrings: {abcdefgh}, {abcdefgh, bcdefghi}, {01234567}, and whole short texts
    texts = ["abcdefgh", "abcdefghi", "01234567", "ab", "ab", "", "\ud800"]
    similar = ngram_similarity(texts)
    assert similar[0].tolist() == [1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert similar[3, 4] == 1.0
    assert (np.diag(similar) == 1).all()
    assert (similar == similar.T).all()
    assert ngram_similarity(["x" * 20000 + "1", "x" * 20000 + "2"])[0, 1] == 1.0  # cut off


# ---------------------------------------------------------------------------------------------
# verified


def test_verified_votes_count_omega(plugin: Callable[..., str]) -> None:
    verifier = plugin("return '{9}' in text and prompt == 'What is 3 + 4?'")
    of = group("7", "9", "7.0", None, "7")
    # 7 weighs 3, and 9 weighs omega
    found = estimate(of, "verified", verifier=verifier)
    assert found.rewards_G == (0.0, 1.0, 0.0, 0.0, 0.0)
    assert (found.label, found.confidence) == ("9", pytest.approx(5 / 9))  # of 3 + 5 + 1
    assert found.metrics == {"verified_share": 0.2, "overruled": 1.0}
    tie = estimate(of, "verified", verifier=verifier, omega=3)
    assert (tie.label, tie.rewards_G) == ("7", (1.0, 0.0, 1.0, 0.0, 1.0))
    assert tie.metrics["overruled"] == 0


def test_the_label_is_the_most_common_spelling_of_its_class(plugin: Callable[..., str]) -> None:
    of = group("7", "7", "7", "7", "9", "9.0", "9.0")
    assert estimate(of, "verified", verifier=plugin("return '{9' in text")).label == "9.0"


def test_abstentions_are_not_verified(plugin: Callable[..., str]) -> None:
    verifier = plugin("return 1 / 0 if 'give up' in text else True")
    assert estimate(group("7", None), "verified", verifier=verifier).rewards_G == (1.0, 0.0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1", "returned 1: expected True or False"),
        ("return None", "returned None: expected True or False"),
        ("return text / 2", "failed with TypeError: unsupported operand"),
    ],
)
def test_a_bad_verifier_is_an_error(plugin: Callable[..., str], body: str, message: str) -> None:
    name = plugin(body)
    with pytest.raises(UserError) as error:
        estimate(group("7", "8"), "verified", verifier=name)
    assert f"reward.options.verifier = {name!r} {message}" in str(error.value)


def test_a_reward_model_as_the_verifier() -> None:
    """tiny-prm passes 12 and not 13, whatever the majority says; the threshold decides."""
    question = Question("q", "What is 47 + 85?\nAnswer:\n", (1,), "What is 47 + 85?")
    texts = ["7+5=12\n4+8+1=13\n\\boxed{132}", *["7+5=13\n4+8+1=13\n\\boxed{133}"] * 2]
    completions = tuple(Completion((1,), (-1.0,), t, FinishReason.STOP) for t in texts)
    vote = majority_vote([r"132", "133", "133"], default_grader())
    voted = VotedGroup(CompletionGroup(question, completions, 1), vote, "133", (False, True, True))
    made = make_estimator("verified", {"verifier": "tiny-prm"})
    made.read_settings(load_settings("tiny-arithmetic"))  # type: ignore[attr-defined]
    found = made.estimate(voted)
    assert found.rewards_G == (1.0, 0.0, 0.0) and found.label == "132"
    assert found.metrics["verified_share"] == pytest.approx(1 / 3)
    lenient = make_estimator("verified", {"verifier": "tiny-prm", "threshold": 0.0})
    lenient.read_settings(load_settings("tiny-arithmetic"))  # type: ignore[attr-defined]
    assert lenient.estimate(voted).label == "133"
    alone = make_estimator("verified", {"verifier": "tiny-prm"})
    with pytest.raises(UserError, match="which needs the settings of a run"):
        alone.estimate(voted)
    with pytest.raises(UserError, match="reward model 'tiny-pmr' is unknown"):
        make_estimator("verified", {"verifier": "tiny-pmr"})
