"""The stand-ins for attention kernels: their signatures, what they refuse, and their numbers."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import varlen
from rehearsed import Both
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

REFUSED = {
    "float32": "query is torch.float32 on cuda:0",
    "on the CPU": "query is torch.bfloat16 on cpu",
    "other types": "key is torch.float16",
    "64-bit ends": "cu_seqlens: torch.int64",
    "ends on the CPU": "cu_seqlens: torch.int32 on cpu",
    "ends that leave a row out": "cu_seqlens [0, 2], longest 3, 5 rows",
    "too short a longest": "longest 2, 5 rows",
    "a longest on the GPU": "expected int",
    "strides": "contiguous last dimension",
    "groups unasked": "Try setting enable_gqa=True",
    "groups asked of 2.11": "unexpected keyword argument 'enable_gqa'",
}


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    """Names, defaults and kinds."""
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.default, p.kind) for p in found]


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="this is another torch")
def test_the_signature_is_that_of_the_installed_torch() -> None:
    assert parameters(varlen.torch_2_13) == parameters(varlen_attn)


def test_torch_2_11_knows_less() -> None:
    """All that is new came behind the window."""
    old, new = parameters(varlen.torch_2_11), parameters(varlen.torch_2_13)
    assert old == new[: len(old)] and old[-1][0] == "window_size" and len(old) == 10


def test_calls_that_a_kernel_could_not_take(both: Both) -> None:
    found = both.gpu.of("rules")["kernels"]
    for name, words in REFUSED.items():
        assert words in found.pop(name), name
    assert found == dict.fromkeys(("taken", "groups asked"), "torch.Size([5, 2, 8])")


@pytest.mark.parametrize("left", [-1, 2])
@pytest.mark.parametrize("key_ends", [[0, 5, 6, 9], [0, 5, 8, 15]])
def test_each_sequence_attends_to_itself(left: int, key_ends: list[int]) -> None:
    """Against PyTorch's attention of each sequence alone, with a mask: the last query stands at
    the last key, of which there may be more than queries."""
    random = torch.Generator().manual_seed(0)
    query_THD = torch.randn(9, 4, 8, generator=random)
    key_TKD, value_TKD = (torch.randn(key_ends[-1], 2, 8, generator=random) for _ in range(2))
    ends = [torch.tensor(e, dtype=torch.int32) for e in ([0, 5, 6, 9], key_ends)]
    out_THD = varlen.attention(query_THD, key_TKD, value_TKD, *ends, 0.3, (left, 0))
    for s in range(3):
        own, keys = (slice(*e[s : s + 2].tolist()) for e in ends)
        parts = [x.transpose(0, 1) for x in (query_THD[own], key_TKD[keys], value_TKD[keys])]
        before = keys.stop - keys.start - (own.stop - own.start)
        seen = torch.ones(parts[0].shape[1], parts[1].shape[1], dtype=torch.bool).tril(before)
        seen = seen.triu(before - left) if left >= 0 else seen
        alone = scaled_dot_product_attention(*parts, attn_mask=seen, scale=0.3, enable_gqa=True)
        torch.testing.assert_close(out_THD[own], alone.transpose(0, 1))
