"""Bugs that other implementations of these losses had, each as a test that fails with it.

Those of a single row are with the row backends, those of hooks and shards in test_head.py and
test_sharded.py, those of compilers in test_ops.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Case, as_float64, head_case, leaves, loss_case, run_loss
from tolerances import assert_no_worse
from ttrl_kernels import linear_logprob, linear_policy_loss
from ttrl_kernels.loss_math import dense_logprob, policy_loss_reference


def gradients(
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    case: Case,
    of_outputs: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Gradients of a function of (logp_T, entropy_T), by the name of the input."""
    hidden, weight, targets, keywords = case
    inputs = leaves(hidden, weight, keywords)
    total = of_outputs(*function(hidden, weight, targets, **keywords))
    return dict(zip(inputs, torch.autograd.grad(total, list(inputs.values())), strict=True))


def compare(
    case: Case,
    of_outputs: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    dtype: torch.dtype = torch.float64,
) -> dict[str, torch.Tensor]:
    """Our gradients against the oracle's; returns ours."""
    ours = gradients(linear_logprob, case, of_outputs)
    truth = gradients(dense_logprob, as_float64(*case), of_outputs)
    plain = gradients(dense_logprob, case, of_outputs)
    for name, value in ours.items():
        assert_no_worse(name, dtype, value, truth[name], plain[name])
        assert value.abs().max() > 0
    return ours


@pytest.mark.parametrize("policy", ["ppo_clip", "cispo", "none"])
def test_liger_1082_correction_and_normaliser_reach_the_gradient(policy: str) -> None:
    """The gradient was 100 times too large: a factor was in the loss and not in its gradient.

    Corrections of the sampler's mismatch between 0.01 and 100 multiply the advantages, and the
    weights are those of a mean over very many tokens.
    """
    hidden, weight, targets, keywords = loss_case(options="clip")
    correction = 10.0 ** torch.linspace(-2, 2, len(targets))
    keywords["policy"] = policy
    keywords["advantages_T"] = keywords["advantages_T"] * correction
    keywords["token_weights_T"] = (keywords["token_weights_T"] != 0) / 1e6
    case = hidden, weight, targets, keywords
    ours, truth = run_loss(linear_policy_loss, case), run_loss(policy_loss_reference, case)
    for name in ("hidden", "weight"):
        torch.testing.assert_close(ours[name], truth[name], rtol=1e-10, atol=0.0)
        assert ours[name].abs().max() > 0


def test_liger_1298_unreduced_outputs_have_the_right_weight_gradient() -> None:
    """With reduction="none" only the mean of the incoming gradients reached the weight."""
    case = head_case(head="bias")
    incoming = torch.randn(len(case[2]), dtype=torch.float64, generator=torch.Generator())
    compare(case, lambda logp, _: (logp * incoming).sum())


def test_unsloth_the_incoming_gradient_is_not_ignored() -> None:
    """The backward of a fused loss returned its stored gradients whatever came in."""
    case = loss_case(head="bias", options="entropy")
    once, scaled = (run_loss(linear_policy_loss, case, scale) for scale in (1.0, -7.0))
    for name in ("hidden", "weight", "bias"):
        torch.testing.assert_close(scaled[name], -7 * once[name])
        assert once[name].abs().max() > 0


def test_trl_the_gradient_of_the_entropy_is_not_dropped() -> None:
    """The entropy was an output, and an entropy bonus on it had silently no gradient."""
    compare(head_case(head="all"), lambda _, entropy: entropy.sum())
    # Nor does it get lost where the policy term of a token has no gradient.
    hidden, weight, targets, keywords = loss_case(options="entropy")
    keywords["advantages_T"] = torch.zeros(len(targets))
    case = hidden, weight, targets, keywords
    ours, truth = run_loss(linear_policy_loss, case), run_loss(policy_loss_reference, case)
    torch.testing.assert_close(ours["weight"], truth["weight"])
    assert ours["weight"].abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_verl_6960_incoming_gradients_that_are_not_contiguous(dtype: torch.dtype) -> None:
    """A kernel read an incoming gradient as if its entries were neighbours in memory."""
    case = hidden, weight, targets, keywords = head_case(dtype, "bias")
    out = linear_logprob(hidden, weight, targets, **keywords)
    every_second = torch.linspace(-1, 1, 2 * len(targets), dtype=out.logp_T.dtype)[::2]
    the_same = out.logp_T.new_tensor(0.7).expand(len(targets))
    assert every_second.stride() == (2,) and the_same.stride() == (0,)
    inputs = leaves(hidden, weight, keywords)
    ours = torch.autograd.grad(out, list(inputs.values()), (every_second, the_same))
    dense = compare(case, lambda logp, entropy: (logp * every_second + 0.7 * entropy).sum(), dtype)
    for name, value in zip(inputs, ours, strict=True):
        assert torch.equal(value, dense[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_verl_6280_log_probs_hardly_depend_on_the_micro_batch(dtype: torch.dtype) -> None:
    """The same token had another log-prob in another micro-batch, and its ratio was not 1.

    BLAS picks its order of summation by the number of rows, so bitwise equality cannot hold for
    any split. What holds: a log-prob moves by a few units in the last place of its largest logit,
    in the dtype that the matmul returns (on a CPU that of the inputs, on a GPU float32).
    """
    hidden, weight, targets, _ = head_case(dtype, shape=(64, 33, 257))
    with torch.no_grad():
        whole = linear_logprob(hidden, weight, targets).logp_T
        largest = (hidden.float() @ weight.float().t()).abs().max().item()
        for rows in (1, 3, 16, 63):
            split = torch.cat(
                [
                    linear_logprob(hidden[i : i + rows], weight, targets[i : i + rows]).logp_T
                    for i in range(0, len(targets), rows)
                ]
            )
            assert (split - whole).abs().max() <= 4 * torch.finfo(dtype).eps * largest


@pytest.mark.parametrize("options", ["entropy", "sequence_all"])
def test_verl_6280_padding_changes_no_bit(options: str) -> None:
    """Dead tokens among the live ones leave every result as it is, to the last bit."""
    hidden, weight, targets, keywords = loss_case(torch.float32, "all", options)
    total = 2 * len(targets) + 5
    place = torch.randperm(total, generator=torch.Generator().manual_seed(0))[: len(targets)]
    place = place.sort().values

    def spread(x: Any, filler: float) -> Any:
        if not (torch.is_tensor(x) and len(x) == len(targets)):
            return x
        out = x.new_full((total, *x.shape[1:]), filler)
        out[place] = x.detach()
        return out.requires_grad_(x.requires_grad)

    fillers = {"token_weights_T": 0, "sequence_ids_T": 1}
    padded = (
        spread(hidden, float("nan")),
        weight,
        spread(targets, -100),
        {k: spread(v, fillers.get(k, float("nan"))) for k, v in keywords.items()},
    )
    expected = run_loss(linear_policy_loss, (hidden, weight, targets, keywords))
    for name, value in run_loss(linear_policy_loss, padded).items():
        same = value[place] if len(value.shape) and len(value) == total else value
        assert torch.equal(same, expected[name]), name
