"""Rows of which only a few tokens could be drawn. Against the oracle: the heads with a support in
`cases.HEADS`, on every backend and dtype, in the tests of both functions."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from cases import V, head_case, loss_case, run_loss
from ttrl_kernels import linear_logprob, linear_policy_loss

if TYPE_CHECKING:
    from conftest import Recorder

FULL = torch.arange(V)


def test_by_hand() -> None:
    """Weights 8, 4, 2 and 1: of {0, 1} the probabilities are 2/3 and 1/3, of {2} it is 1."""
    logits = torch.tensor([[8.0, 4.0, 2.0, 1.0]] * 3).log().requires_grad_()
    support = torch.tensor([[1, 0, -1], [-1, -1, 2], [-1, -1, -1]])
    targets = torch.tensor([1, 2, 3])
    logp, entropy = linear_logprob(logits, torch.eye(4), targets, support_TM=support)
    third = math.log(3) - 2 / 3 * math.log(2)
    all_four = math.log(15) - (8 * 3 + 4 * 2 + 2) / 15 * math.log(2)
    assert logp.tolist() == pytest.approx([-math.log(3), 0, -math.log(15)], abs=1e-6)
    assert entropy.tolist() == pytest.approx([third, 0, all_four], abs=1e-6)
    logp.sum().backward()
    expected = [[-2 / 3, 2 / 3, 0, 0], [0, 0, 0, 0], [-8 / 15, -4 / 15, -2 / 15, 14 / 15]]
    torch.testing.assert_close(logits.grad, torch.tensor(expected))
    assert logits.grad is not None and logits.grad[0, 2:].tolist() == [0, 0]


@pytest.mark.parametrize("head", ["plain", "all"])
def test_gradcheck(head: str) -> None:
    hidden, weight, targets, keywords = head_case(head=head, shape=(6, 3, 5))
    bias = keywords.pop("bias", None)
    support = torch.stack([targets, (targets + 2) % 5, torch.full((6,), -1)], 1)
    support[4] = -1

    def outputs(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        return linear_logprob(
            hidden, weight, targets, bias=bias, support_TM=support.clone(), **keywords
        )

    assert torch.autograd.gradcheck(outputs, (hidden, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", ["entropy", "sequence_all"])
def test_rows_of_all_tokens_keep_their_bits(
    options: str, dtype: torch.dtype, small_chunks: None
) -> None:
    case = loss_case(dtype, "all", options)
    plain = run_loss(linear_policy_loss, case)
    unrestricted = torch.full((len(case[2]), 3), -1, dtype=torch.int32)
    ours = run_loss(partial(linear_policy_loss, support_TM=unrestricted), case)
    for name, value in plain.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("options", ["entropy", "sequence_all"])
def test_a_support_of_the_whole_vocabulary_is_none(options: str) -> None:
    case = loss_case(torch.float64, "all", options)
    whole = FULL.flip(0).expand(len(case[2]), V)
    ours = run_loss(partial(linear_policy_loss, support_TM=whole), case)
    for name, value in run_loss(linear_policy_loss, case).items():
        torch.testing.assert_close(ours[name], value, msg=name)


def test_a_row_that_leaves_no_choice_teaches_nothing() -> None:
    hidden, weight, targets, keywords = loss_case(options="entropy")
    keywords["support_TM"] = targets[:, None]
    keywords |= {"ref_logp_T": None, "old_logp_T": None}
    result = linear_policy_loss(hidden, weight, targets, **keywords)
    result.loss.backward()
    assert result.logp_T.abs().max() == result.entropy_T.abs().max() == 0
    assert hidden.grad is not None and (hidden.grad == 0).all()


def test_the_row_operations_see_the_members_only(recorder: Recorder) -> None:
    """Rows of all tokens come first, in chunks of their own."""
    hidden, weight, targets, _ = head_case(torch.float32, "plain")
    support = torch.stack([targets, (targets + 1) % V], 1)
    support[::4] = -1
    widths: list[int] = []
    stats, grad = recorder.backend.row_stats, recorder.backend.row_grad_

    class Spy:
        def row_stats(self, logits: torch.Tensor, *args: Any) -> Any:
            widths.append(logits.shape[1])
            return stats(logits, *args)

        row_grad_ = staticmethod(grad)

    recorder.backend = Spy()
    logp, _ = linear_logprob(hidden, weight, targets, support_TM=support)
    logp.sum().backward()
    assert recorder.stats_rows == recorder.grad_rows == [11, 30]
    assert widths == [V, 2]


def test_what_dead_rows_have_is_never_read() -> None:
    case = loss_case(torch.float32, "support", "entropy")
    keywords = case[-1]
    plain = run_loss(linear_policy_loss, case)
    dead = keywords["token_weights_T"] == 0
    keywords["support_TM"][dead] = 10**9
    assert dead.any()
    for name, value in run_loss(linear_policy_loss, case).items():
        assert torch.equal(value, plain[name]), name


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([3, -1, -1], r"support_TM\[1\] lacks the target, .* 7 among them"),
        ([7, 3, 3], "holds a token twice"),
        ([7, 101, -1], "holds a number that is not -1 to 100"),
        ([7, -2, -1], "holds a number that is not -1 to 100"),
    ],
)
def test_supports_that_cannot_be_are_refused(row: list[int], words: str) -> None:
    hidden, weight, targets, _ = head_case()
    targets[:] = 7
    support = torch.full((len(targets), 3), -1)
    support[1] = torch.tensor(row)
    with pytest.raises(ValueError, match=words):
        linear_logprob(hidden, weight, targets, support_TM=support)
    targets[1] = -100  # a token that is skipped may have any
    linear_logprob(hidden, weight, targets, support_TM=support)


@pytest.mark.parametrize(
    "support",
    [
        torch.zeros(41, dtype=torch.int64),
        torch.zeros(40, 2, dtype=torch.int64),
        torch.zeros(41, 2),
        torch.zeros(41, 2, dtype=torch.int16),
        torch.zeros(41, 2, dtype=torch.int64, device="meta"),
    ],
    ids=lambda x: f"{list(x.shape)}-{x.dtype}-{x.device}",
)
def test_other_tensors_are_refused(support: torch.Tensor) -> None:
    hidden, weight, targets, _ = head_case()
    with pytest.raises(ValueError, match=r"support_TM is torch.* \[41, members\] on cpu"):
        linear_logprob(hidden, weight, targets, support_TM=support)
