"""What log-probs and loss without all the logits allocate."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from allocations import allocations
from cases import head_case, loss_case
from ttrl_kernels import chunks, linear_logprob, linear_policy_loss

H, CHUNK = 16, 1 << 16
SIZES = [(128, 512), (256, 1024), (512, 2048), (1024, 4096)]
"""(tokens, vocabulary), their product four times as large each time."""


def policy_loss_backward(tokens: int, vocabulary: int) -> Callable[[], None]:
    hidden, weight, targets, keywords = loss_case(
        torch.float32, options="sequence_all", shape=(tokens, H, vocabulary)
    )
    return lambda: linear_policy_loss(hidden, weight, targets, **keywords).loss.backward()


def logprob_backward(tokens: int, vocabulary: int) -> Callable[[], None]:
    hidden, weight, targets, _ = head_case(torch.float32, shape=(tokens, H, vocabulary))
    return lambda: sum(x.sum() for x in linear_logprob(hidden, weight, targets)).backward()


def dense_backward(tokens: int, vocabulary: int) -> Callable[[], None]:
    hidden, weight, targets, _ = head_case(torch.float32, shape=(tokens, H, vocabulary))
    return lambda: torch.nn.functional.cross_entropy(hidden @ weight.t(), targets).backward()


def support_backward(tokens: int, vocabulary: int) -> Callable[[], None]:
    hidden, weight, targets, keywords = head_case(
        torch.float32, "support", shape=(tokens, H, vocabulary)
    )
    return lambda: sum(
        x.sum() for x in linear_logprob(hidden, weight, targets, **keywords)
    ).backward()


@pytest.mark.parametrize("call", [policy_loss_backward, logprob_backward, support_backward])
def test_memory_does_not_grow_with_tokens_times_vocabulary(
    call: Callable[[int, int], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most a few chunks, a few matrices like the weight or the hidden states, and vectors."""
    monkeypatch.setattr(chunks, "LOGITS_BYTES", CHUNK)
    call(*SIZES[0])()  # what is allocated once, on first use
    for tokens, vocabulary in SIZES:
        linear = 4 * H * (tokens + vocabulary)
        vectors = 4 * 40 * tokens
        most, largest = allocations(call(tokens, vocabulary))
        assert largest <= max(CHUNK, linear)
        assert most <= 4 * CHUNK + 4 * linear + vectors


def test_the_measurement_sees_full_logits() -> None:
    tokens, vocabulary = SIZES[-1]
    _, largest = allocations(dense_backward(tokens, vocabulary))
    assert largest >= 4 * tokens * vocabulary > 8 * CHUNK
