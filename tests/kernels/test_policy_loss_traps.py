"""Numbers that `linear_policy_loss` must not stumble over, and inputs that it refuses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from cases import (
    V,
    head_case,
    loss_case,
    run_loss,
)
from oracle import compare
from ttrl_kernels import chunks, linear_policy_loss

if TYPE_CHECKING:
    pass


# --- numerical traps


@pytest.mark.parametrize("options", ["sequence_all", "entropy"])
def test_repeated_runs_give_the_same_bits(options: str, small_chunks: None) -> None:
    case = loss_case(torch.float32, "all", options)
    first, second = (run_loss(linear_policy_loss, case) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("options", ["entropy", "sequence_all"])
def test_chunk_size_does_not_matter(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = loss_case(head="all", options=options)
    whole = run_loss(linear_policy_loss, case)
    for rows in (1, 5, 16):
        monkeypatch.setattr(chunks, "LOGITS_BYTES", rows * V * 8)
        for name, value in run_loss(linear_policy_loss, case).items():
            torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-12)


def test_weight_gradient_does_not_drift_over_many_bf16_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sixty-four chunks summed in bfloat16 would be off by several of its units."""
    monkeypatch.setattr(chunks, "LOGITS_BYTES", 4 * V * 4)
    hidden, weight, targets, keywords = loss_case(
        torch.bfloat16, options="on_policy", shape=(340, 8, V)
    )
    keywords["advantages_T"] = torch.ones(340)
    keywords["token_weights_T"] = keywords["token_weights_T"].abs()
    compare((hidden, weight, targets, keywords), torch.bfloat16)


@pytest.mark.parametrize("options", ["clip", "sequence_all"])
def test_all_dead(options: str) -> None:
    hidden, weight, targets, keywords = loss_case(head="bias", options=options)
    keywords["token_weights_T"] = torch.zeros(len(targets))
    result = linear_policy_loss(hidden, weight, targets, **keywords)
    result.loss.backward()
    assert result.loss.item() == 0 and result.live_rows == result.gradient_rows == 0
    for x in (hidden, weight, keywords["bias"]):
        assert x.grad.shape == x.shape and (x.grad == 0).all()


@pytest.mark.parametrize("options", ["clip", "sequence_all"])
def test_no_tokens(options: str) -> None:
    hidden, weight, targets, keywords = loss_case(options=options, shape=(0, 16, 101))
    result = linear_policy_loss(hidden, weight, targets, **keywords)
    result.loss.backward()
    assert result.loss.item() == 0 and result.logp_T.shape == (0,)
    assert hidden.grad.shape == (0, 16) and (weight.grad == 0).all()


@pytest.mark.parametrize("options", ["clip", "sequence_all"])
def test_one_dead_sequence_leaves_the_others_alone(options: str) -> None:
    hidden, weight, targets, keywords = loss_case(options=options)
    keywords["token_weights_T"][keywords["sequence_ids_T"] == 2] = 0
    compare((hidden, weight, targets, keywords), torch.float64)


@pytest.mark.parametrize("options", ["none", "sequence_none", "off_policy_mask"])
def test_an_overflowing_ratio_is_bounded_and_has_no_gradient(options: str) -> None:
    hidden, weight, targets, keywords = loss_case(torch.float32, options=options)
    keywords["old_logp_T"] = torch.full((len(targets),), -1e4)
    keywords["advantages_T"] = torch.ones(len(targets))
    result = linear_policy_loss(hidden, weight, targets, **keywords)
    total = keywords["token_weights_T"].sum()
    assert result.loss.item() == pytest.approx(-math.exp(20) * total.item(), rel=1e-5)
    assert result.gradient_rows == 0


NAN_CASES = ["clip", "kl_k3", "sequence_all", "gmpo", "dppo_tv", "dppo_kl", "off_policy_mask"]


@pytest.mark.parametrize("options", NAN_CASES)
@pytest.mark.parametrize("where", ["hidden", "old_logp_T", "advantages_T"])
def test_nan_on_a_live_token_reaches_loss_and_gradient(where: str, options: str) -> None:
    hidden, weight, targets, keywords = loss_case(torch.float32, options=options)
    live = int(keywords["token_weights_T"].nonzero()[0])
    with torch.no_grad():
        (hidden if where == "hidden" else keywords[where])[live] = math.nan
    result = linear_policy_loss(hidden, weight, targets, **keywords)
    result.loss.backward()
    assert result.loss.isnan() and weight.grad.isnan().any() and hidden.grad[live].isnan().all()


def test_padded_vocabulary_masked_by_an_infinite_bias() -> None:
    """Rows past the real vocabulary get a bias of -inf: the result is that of the real ones."""
    hidden, weight, targets, keywords = loss_case(options="entropy")
    small = run_loss(linear_policy_loss, (hidden, weight, targets, keywords))
    padding = 9
    padded = torch.cat([weight, torch.ones(padding, weight.shape[1])]).detach().requires_grad_()
    bias = torch.zeros(V + padding, dtype=torch.float64)
    bias[V:] = -math.inf
    case = hidden, padded, targets, {**keywords, "bias": bias.requires_grad_()}
    for name, value in run_loss(linear_policy_loss, case).items():
        if name == "bias":
            assert value.isfinite().all() and (value[V:] == 0).all()
            continue
        if name == "weight":
            assert (value[V:] == 0).all()
            value = value[:V]
        torch.testing.assert_close(value, small[name], rtol=1e-13, atol=1e-13)


# --- wrong inputs


def test_target_out_of_range_on_a_live_token() -> None:
    hidden, weight, targets, keywords = loss_case()
    live = int(keywords["token_weights_T"].nonzero()[2])
    for wrong in (V, -100):
        targets[live] = wrong
        with pytest.raises(ValueError, match=rf"targets_T\[{live}\] is {wrong}, expected 0 to 100"):
            linear_policy_loss(hidden, weight, targets, **keywords)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"advantages_T": torch.ones(3)}, r"advantages_T is torch.float32 \[3\] .*\[41\]"),
        ({"token_weights_T": torch.ones(41, dtype=torch.int64)}, "token_weights_T is torch.int64"),
        ({"old_logp_T": torch.ones(41, 1)}, r"old_logp_T is torch.float32 \[41, 1\]"),
        ({"sequence_ids_T": torch.ones(41)}, "sequence_ids_T is torch.float32 .*an integer vector"),
        ({"kl_coef": 0.1, "ref_logp_T": None}, "kl_coef is 0.1 but ref_logp_T is None"),
        (
            {"ratio_level": "sequence", "sequence_ids_T": None},
            "ratio_level is 'sequence' but sequence_ids_T is None",
        ),
        ({"policy": "gmpo", "sequence_ids_T": None}, "policy is 'gmpo' but sequence_ids_T is None"),
        (
            {"off_policy_mask": 0.5, "sequence_ids_T": None},
            "off_policy_mask is 0.5 but sequence_ids_T is None",
        ),
        ({"ratio_penalty_T": torch.ones(3)}, r"ratio_penalty_T is torch.float32 \[3\]"),
        ({"backend": "cuda"}, "backend is 'cuda', expected auto or one of triton, native, torch"),
        ({"policy": "trpo"}, "policy is 'trpo'"),
    ],
)
def test_wrong_token_data(change: dict[str, Any], message: str) -> None:
    hidden, weight, targets, keywords = loss_case()
    with pytest.raises(ValueError, match=message):
        linear_policy_loss(hidden, weight, targets, **{**keywords, **change})


def test_wrong_matrices() -> None:
    hidden, weight, targets, _ = head_case()
    data = {"advantages_T": torch.ones(41), "token_weights_T": torch.ones(41)}

    def message(
        hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, **options: Any
    ) -> str:
        with pytest.raises(ValueError) as error:
            linear_policy_loss(hidden, weight, targets, **data, **options)
        return str(error.value)

    assert "hidden_TH is torch.float64 [1, 41, 16]" in message(hidden[None], weight, targets)
    assert "hidden_TH is torch.float16" in message(hidden.half(), weight.half(), targets)
    assert "not gathered" in message(hidden, weight[:0], targets)
    assert "expected [vocabulary, 16]" in message(hidden, weight.t(), targets)
    assert "weight_VH is torch.float32" in message(hidden, weight.float(), targets)
    assert "use .long()" in message(hidden, weight, targets.int())
    assert "expected torch.float64 [101]" in message(hidden, weight, targets, bias=weight[0])
    assert "softcap is 0" in message(hidden, weight, targets, softcap=0)
    assert "temperature is -1" in message(hidden, weight, targets, temperature=-1)
    assert "temperature has an entry" in message(
        hidden, weight, targets, temperature=torch.zeros(41)
    )
