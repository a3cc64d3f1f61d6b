"""Many ranks under DeepSpeed against one process without it: the same update, whatever the split.

What the ranks compute is in ``zero3_facts.py``, which is started once per number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tensors import assert_close_everywhere
from tiny_models import LENGTHS, figures_of
from zero3_cases import (
    CASES,
    OTHERS,
    RATES,
    Seen,
    all_updates,
    away_cases,
    case_samples,
    cases_of,
    local_policy,
    read_samples,
)

ALL_RANKS = (1, 2, 4)
COMPUTED = [(case, ranks) for ranks in ALL_RANKS for case in cases_of(ranks)]

KIND = dict[str, torch.Tensor]


class Local(NamedTuple):
    """What one process computes."""

    results: list[dict[str, Any]]
    weights: KIND
    exp_avg: KIND
    pushed: KIND
    steps_taken: int


@pytest.fixture(scope="session")
def local(zero3_folder: Path) -> Callable[[str], Local]:
    """``local(case)`` is what one process computes, once."""
    found: dict[str, Local] = {}

    def compute(case: str) -> Local:
        if case not in found:
            policy = local_policy(case, zero3_folder)
            results = all_updates(case, policy, case_samples(case, read_samples(zero3_folder)))
            names = dict(policy._trained())
            moments = {n: policy.optimizer.state[p]["exp_avg"] for n, p in names.items()}
            weights = {n: p.detach() for n, p in names.items()}
            pushed = {n: t.detach().clone() for n, t in policy.named_weights()}
            facts = [figures_of(r) for r in results]
            found[case] = Local(facts, weights, moments, pushed, policy.steps_taken)
        return found[case]

    return compute


def clear(error: torch.Tensor, mean_gradient: torch.Tensor | None) -> torch.Tensor:
    """The errors of entries whose gradient is not mostly rounding."""
    if mean_gradient is None:
        return error
    size = mean_gradient.abs().view_as(error)
    return error[size > 1e-3 * size.max()]


@pytest.mark.parametrize(("case", "ranks"), [c for c in COMPUTED if c[0] != "bfloat16"])
def test_any_number_of_ranks_takes_the_same_steps(
    case: str, ranks: int, seen_by: Callable[[int], Seen], local: Callable[[str], Local]
) -> None:
    """Sums in another order differ in the last bits of float32.

    AdamW divides each entry of a gradient by its own size, so that those which are mostly rounding
    make as large a step as any other, in either direction: the other weights are compared within a
    share of one step, those within twice the way of all steps, and the mean gradient (exp_avg),
    after clipping, within a share of its largest entry.
    """
    seen, expected = seen_by(ranks), local(case)
    found = seen.facts[case]
    apart = 2 * sum(result["learning_rate"] for result in expected.results)
    assert_close_everywhere(seen.of(case, "exp_avg"), expected.exp_avg, 2e-5)
    for name, weight in expected.weights.items():
        error = (seen.of(case, "weights")[name] - weight).abs()
        assert clear(error, expected.exp_avg.get(name)).max().item() <= 0.05 * RATES[0], name
        assert error.max().item() <= apart, name
    assert found["steps_taken"] == expected.steps_taken == len(found["results"])
    for result, truth in zip(found["results"], expected.results, strict=True):
        assert result == pytest.approx({k: truth[k] for k in result}, rel=2e-5, abs=1e-6)


def test_the_cases_are_what_they_are_called(local: Callable[[str], Local]) -> None:
    """Several updates per rollout, skipped sequences and steps, and a clip that bites."""
    assert [r["sequences"] for r in local("token_mean").results] == [4, 4, 2] * 2
    assert [r["sequences"] for r in local("skipped").results] == [2, 4] * 2
    assert [r["skipped_sequences"] for r in local("skipped").results] == [2, 0] * 2
    assert [r["learning_rate"] for r in local("token_mean").results] == [
        rate for rate in RATES for _ in range(3)
    ]
    norms = [r["grad_norm"] for r in local("grad-clip").results]
    assert max(norms) > min(norms) > 10 * CASES["grad-clip"]["grad_clip"]
    # A rate of clipping that differs from step to step does not cancel in AdamW.
    clipped, free = local("grad-clip").weights, local("token_mean").weights
    assert max((clipped[n] - free[n]).abs().max().item() for n in free) > 0.1 * RATES[0]
    assert all(0 < r["clip_fraction"] < 1 for r in local("token_mean").results[:2])
    means = ("token_mean", "sequence_mean", "constant")
    assert len({round(local(case).results[0]["loss"], 4) for case in means}) == 3


def test_bfloat16_weights_have_float32_masters(
    seen_by: Callable[[int], Seen], local: Callable[[str], Local]
) -> None:
    """Eight bits per product and per weight: gradients point where those of float32 weights do.

    The model's logits are steep, so that its log-probs are off by 0.1 and its ratios by 10 %.
    """
    seen, expected = seen_by(2), local("bfloat16")
    flat = [
        torch.cat([kind[name].flatten() for name in expected.exp_avg])
        for kind in (seen.of("bfloat16", "exp_avg"), expected.exp_avg)
    ]
    assert torch.cosine_similarity(*flat, dim=0) > 0.97
    for result, truth in zip(seen.facts["bfloat16"]["results"], expected.results, strict=True):
        assert result["entropy"] == pytest.approx(truth["entropy"], rel=0.02)
        assert result["grad_norm"] == pytest.approx(truth["grad_norm"], rel=0.25)
    masters, pushed = seen.of("bfloat16", "weights"), seen.of("bfloat16", "pushed")
    assert {t.dtype for t in masters.values()} == {torch.float32}
    assert {t.dtype for t in pushed.values()} == {torch.bfloat16}
    assert all(torch.equal(masters[n].bfloat16(), pushed[n]) for n in masters)
    assert any(not torch.equal(masters[n].bfloat16().float(), masters[n]) for n in masters)


@pytest.mark.parametrize(("case", "ranks"), COMPUTED)
def test_every_rank_pushes_the_same_complete_weights(
    case: str, ranks: int, seen_by: Callable[[int], Seen], local: Callable[[str], Local]
) -> None:
    seen = seen_by(ranks)
    digests = seen.facts[case]["digests"]
    assert len(digests) == ranks and len(set(digests)) == 1
    pushed = seen.of(case, "pushed")
    assert sorted(pushed) == sorted(local(case).pushed)
    assert ("lm_head.weight" in pushed) != (case == "tied")
    if case != "bfloat16":
        trained = {n: t for n, t in seen.of(case, "weights").items() if "lora_" not in n}
        assert all(torch.equal(t, pushed[n]) for n, t in trained.items())
        for name, tensor in local(case).pushed.items():
            error = clear((pushed[name] - tensor).abs(), local(case).exp_avg.get(name))
            assert error.max().item() <= 0.02 * RATES[0], name


@pytest.mark.parametrize("ranks", ALL_RANKS)
@pytest.mark.parametrize("case", ["kl", "offload-optimizer"])
def test_shares_go_to_another_policy_and_back(
    case: str, ranks: int, seen_by: Callable[[int], Seen]
) -> None:
    """To the bit, on every rank: the next updates of both are the same."""
    found = seen_by(ranks).facts[f"round_trip/{case}"]
    for fact in (
        "before_differ",
        "loaded_equal",
        "after_equal",
        "after_differs",
        "weights_only_equal",
    ):
        assert found[fact] == [True] * ranks, fact
    assert found["weights_only_moments"] == [0.0] * ranks
    assert found["steps"] == [[1, 2, 2]] * ranks


@pytest.mark.parametrize("ranks", ALL_RANKS)
@pytest.mark.parametrize("name", ["tied", "untied", *OTHERS])
def test_a_model_is_loaded_into_shares(
    name: str, ranks: int, seen_by: Callable[[int], Seen]
) -> None:
    """What transformers loads whole, types and buffers included, and nobody holds more."""
    found = seen_by(ranks).facts["loading"][name]
    assert max(found["held"]) < 1 / ranks + 0.01
    for fact in ("names", "equal", "buffers", "positions"):
        assert found[fact] == [True] * ranks, fact
    assert found["training"] == [False] * ranks
    assert found["drew"] == [False] * ranks


@pytest.mark.parametrize("ranks", ALL_RANKS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "lacking",
            "lacks 1 weights of a Qwen2ForCausalLM, for example model.layers.1.mlp.up",
        ),
        ("gemma2", "Gemma2ForCausalLM ({folder}/gemma2) cannot be trained here: "),
    ],
)
def test_all_ranks_refuse_a_model(
    name: str, words: str, ranks: int, seen_by: Callable[[int], Seen], zero3_folder: Path
) -> None:
    messages = seen_by(ranks).facts["refused"][name]
    assert len(messages) == ranks and len(set(messages)) == 1
    assert words.format(folder=zero3_folder) in messages[0]


@pytest.mark.parametrize("ranks", ALL_RANKS)
def test_rank_0_is_handed_all_weights_and_all_ranks_hear_what_went_wrong(
    ranks: int, seen_by: Callable[[int], Seen]
) -> None:
    found = seen_by(ranks).facts["handed_over"]
    assert found["count"] == [27, *[0] * (ranks - 1)]
    assert found["equal"][0] is True
    assert found["message"] == ["no space left"] * ranks
    assert len(set(found["goes_on"])) == 1


@pytest.mark.parametrize(
    ("case", "ranks"), [(case, ranks) for ranks in ALL_RANKS for case in away_cases(ranks)]
)
def test_what_leaves_during_a_rollout_comes_back(
    case: str, ranks: int, seen_by: Callable[[int], Seen]
) -> None:
    """Its storage is empty meanwhile, pushes and checkpoints are right, and so is what follows."""
    found = seen_by(ranks).facts[f"away/{case}"]
    for first, second in found["bytes"]:
        assert not any(first) and not any(second)
        assert len(second) == len(first) + 2  # the moments, since the first update
    for fact in ("meanwhile", "weights", "after"):
        assert found[fact] == [[True, True]] * ranks, fact


@pytest.mark.parametrize("ranks", ALL_RANKS)
def test_documents_never_see_each_other(ranks: int, seen_by: Callable[[int], Seen]) -> None:
    """Another text in the fifth of ten packed sequences: the others keep every bit."""
    changes = seen_by(ranks).facts["documents"]
    assert len(changes) == len(LENGTHS)
    assert changes[4] > 0.1
    assert changes[:4] + changes[5:] == [0.0] * 9


@pytest.mark.parametrize("ranks", ALL_RANKS)
def test_a_teacher_is_shared_too(ranks: int, seen_by: Callable[[int], Seen]) -> None:
    for found in seen_by(ranks).facts["teacher"]:
        assert found.pop("held") < 1 / ranks + 0.01
        assert found == {"follows": True, "moved": True, "goes_on": True}


@pytest.mark.parametrize("ranks", ALL_RANKS)
def test_gradients_are_looked_at_without_copies(ranks: int, seen_by: Callable[[int], Seen]) -> None:
    """Their norm is that of one process (see above), which needs none of all of them at once."""
    facts = {"names": True, "lengths": True, "views": True}
    assert seen_by(ranks).facts["gradients"] == [facts] * ranks


@pytest.mark.parametrize("ranks", ALL_RANKS)
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("loss", "the update is not finite (loss -inf"),
        ("gradient", "gradients of ['model.layers.1.self_attn.v_proj.weight']"),
        ("sampler", "question 'q2' has 1 of 16 sampler log-probs nan"),
    ],
)
def test_what_is_not_finite_changes_nothing_on_any_rank(
    what: str, words: str, ranks: int, seen_by: Callable[[int], Seen]
) -> None:
    """Neither the weights and moments, nor the updates that follow."""
    found = seen_by(ranks).facts["not_finite"][what]
    assert len(set(found["message"])) == 1 and len(found["message"]) == ranks
    assert words in found["message"][0]
    assert "the weights are unchanged" in found["message"][0]
    assert found["unchanged"] == [True] * ranks
    assert found["goes_on"] == [True] * ranks
