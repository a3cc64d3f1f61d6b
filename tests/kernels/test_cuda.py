"""The whole operation on a GPU against the float64 oracle, by the rule of tolerances.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import HEADS, OPTIONS, Case, as_float64, loss_case, loss_magnitude, run_loss
from tolerances import assert_no_worse
from ttrl_kernels import chosen_backend, chunks, linear_policy_loss
from ttrl_kernels.loss_math import policy_loss_reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

DTYPES = (torch.float32, torch.bfloat16)
SHAPE = (200, 72, 5003)


def on_gpu(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, keywords: dict[str, Any]
) -> Case:
    """The same case there, as fresh leaves."""

    def move(x: Any) -> Any:
        return x.detach().cuda().requires_grad_(x.requires_grad) if torch.is_tensor(x) else x

    return move(hidden), move(weight), move(targets), {k: move(v) for k, v in keywords.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "head, options", [(h, "entropy") for h in HEADS] + [("all", o) for o in OPTIONS]
)
def test_against_the_oracle(
    head: str, options: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "LOGITS_BYTES", 60 * SHAPE[2] * 4)
    case = on_gpu(*loss_case(dtype, head, options, shape=SHAPE))
    ours, plain = (run_loss(f, case) for f in (linear_policy_loss, policy_loss_reference))
    truth = run_loss(policy_loss_reference, as_float64(*case))
    scales = {"loss": loss_magnitude(case)}
    for name in truth:
        assert_no_worse(name, dtype, ours[name], truth[name], plain[name], scales.get(name))


def test_auto_takes_triton() -> None:
    assert chosen_backend("cuda", torch.bfloat16) == "triton"


def test_repeated_runs_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LOGITS_BYTES", 60 * SHAPE[2] * 4)
    case = on_gpu(*loss_case(torch.bfloat16, "all", "sequence_all", shape=SHAPE))
    first, second = (run_loss(linear_policy_loss, case) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_more_than_two_to_the_31_logits_in_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row offsets need 64 bits. Two ends of one long chunk against each of them alone."""
    tokens, vocabulary = 16500, 131072
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    monkeypatch.setattr(chunks, "LOGITS_BYTES", 1 << 40)
    assert tokens * vocabulary > 2**31
    g = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(tokens, 16, generator=g, device="cuda").bfloat16().requires_grad_()
    weight = torch.randn(vocabulary, 16, generator=g, device="cuda").bfloat16()
    targets = torch.randint(vocabulary, (tokens,), generator=g, device="cuda")

    def run(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        ones = torch.ones(len(targets[part]), device="cuda")
        result = linear_policy_loss(
            hidden[part], weight, targets[part], advantages_T=ones, token_weights_T=ones
        )
        return result.logp_T, torch.autograd.grad(result.loss, hidden)[0][part]

    whole = run(slice(None))
    for part in (slice(0, 50), slice(tokens - 50, None)):
        for all_rows, few_rows in zip(whole, run(part), strict=True):
            torch.testing.assert_close(all_rows[part], few_rows, rtol=2e-2, atol=1e-3)
