"""Packed sequences against each sequence alone, in the attention function."""

from __future__ import annotations

import math
import sys
import types
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

from ttrl.models import attention
from ttrl.models.attention import packed_attention
from ttrl.models.packing import moved
from ttrl.types import PackedSequences, UserError

LENGTHS = (5, 1, 9, 3)
ENDS = torch.tensor([0, 5, 6, 15, 18], dtype=torch.int32)
APART = PackedSequences(ENDS, 9)
# The last two see the first one's rows before their own.
KEYS = [[*range(5)], [5], [*range(5), *range(6, 15)], [*range(5), 15, 16, 17]]
SHARED = PackedSequences(
    ENDS,
    9,
    torch.tensor([row for keys in KEYS for row in keys]),
    torch.tensor([0, 5, 6, 20, 28], dtype=torch.int32),
    14,
)
# Sequences of like lengths, which are padded: a short one with more keys than the longest one.
ALIKE_KEYS = [[0], [*range(8)], [*range(12)], [*range(12, 18)]]
ALIKE = PackedSequences(
    torch.tensor([0, 1, 8, 12, 18], dtype=torch.int32),
    7,
    torch.tensor([row for keys in ALIKE_KEYS for row in keys]),
    torch.tensor([0, 1, 9, 21, 27], dtype=torch.int32),
    12,
)
LAYOUTS = {"apart": APART, "a shared prompt": SHARED, "alike": ALIKE}
HEADS = [(4, 4), (4, 2), (4, 1)]  # query and key heads: MHA, GQA, MQA


def inputs(query_heads: int, key_heads: int) -> list[torch.Tensor]:
    """Query, key and value in float64, where only a wrong formula is far off."""
    rng = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, heads, sum(LENGTHS), 8, dtype=torch.float64, generator=rng)
        for heads in (query_heads, key_heads, key_heads)
    ]


def packed(
    qkv: list[torch.Tensor], sequences: PackedSequences | None = APART, **options: Any
) -> torch.Tensor:
    out, weights = packed_attention(
        torch.nn.Module(), *qkv, None, sequences=sequences, **{"dropout": 0.0, **options}
    )
    assert weights is None
    return out


def alone(
    qkv: list[torch.Tensor],
    scale: float,
    window: int | None = None,
    sequences: PackedSequences = APART,
) -> torch.Tensor:
    """Every sequence, head and position by itself: softmax(scale q k) v over what came before."""
    ends = sequences.ends.tolist()
    rows = [list(range(a, b)) for a, b in pairwise(ends)]
    keys = rows
    if sequences.keys_K is not None and sequences.key_ends is not None:
        parts = sequences.keys_K.tensor_split(sequences.key_ends[1:-1].long())
        keys = [part.tolist() for part in parts]
    query, key, value = (x[0] for x in qkv)
    out = torch.zeros(1, query.shape[1], *query.shape[::2], dtype=query.dtype)
    for own, before in zip(rows, keys, strict=True):
        for head in range(query.shape[0]):
            of_group = head // (query.shape[0] // key.shape[0])
            for t in own:
                past = before[: before.index(t) + 1]
                past = past if window is None else past[-window:]
                scores = scale * key[of_group, past] @ query[head, t]
                out[0, t, head] = scores.softmax(0) @ value[of_group, past]
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("scaling", "window"), [(None, None), (0.7, None), (0.7, 4), (0.7, 1)])
def test_outputs_and_gradients_are_those_of_each_sequence_alone(
    heads: tuple[int, int], scaling: float | None, window: int | None, layout: str
) -> None:
    qkv, sequences = [x.requires_grad_() for x in inputs(*heads)], LAYOUTS[layout]
    ours = packed(qkv, sequences, scaling=scaling, sliding_window=window)
    theirs = alone(qkv, 1 / math.sqrt(8) if scaling is None else scaling, window, sequences)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    downstream = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator())
    our_grads = torch.autograd.grad(ours, qkv, downstream)
    their_grads = torch.autograd.grad(theirs, qkv, downstream)
    torch.testing.assert_close(our_grads, their_grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("which", range(len(LENGTHS)))
@pytest.mark.parametrize("value", [3.0, math.nan])
def test_changing_one_sequence_changes_no_other_by_one_bit(
    heads: tuple[int, int], which: int, value: float
) -> None:
    qkv = inputs(*heads)
    before = packed(qkv)
    start, end = ENDS[which], ENDS[which + 1]
    for x in qkv:
        x[:, :, start:end] *= value
    after = packed(qkv)
    same = (after == before).flatten(2).all(-1)[0]
    expected = torch.ones(sum(LENGTHS), dtype=torch.bool)
    expected[start:end] = False
    assert same.tolist() == expected.tolist()


def test_no_row_sees_a_later_one() -> None:
    qkv = inputs(4, 2)
    before = packed(qkv)
    for x in qkv:
        x[:, :, 10] += 1  # the fifth of nine rows in the third sequence
    changed = (packed(qkv) != before).flatten(2).any(-1)[0].nonzero().flatten()
    assert changed.tolist() == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("layout", ["apart", "a shared prompt"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("window", "seen"), [(None, (-1, 0)), (4, (3, 0))])
def test_on_gpus_a_kernel_gets_what_it_needs(
    heads: tuple[int, int],
    window: int | None,
    seen: tuple[int, int],
    layout: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Layout, lengths and window as flash attention takes them; a stand-in computes."""
    qkv, sequences = inputs(*heads), LAYOUTS[layout]
    own = [*range(18)]
    rows, key_ends, most = (
        (own, [*ENDS], 9)
        if layout == "apart"
        else ([row for keys in KEYS for row in keys], [0, 5, 6, 20, 28], 14)
    )

    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        lengths: tuple[torch.Tensor, torch.Tensor, int, int],
        scale: float,
        window_size: tuple[int, int],
    ) -> torch.Tensor:
        assert (query.shape[1], key.shape[1]) == heads
        for given, x in ((key, qkv[1]), (value, qkv[2])):
            assert torch.equal(given, x[0].transpose(0, 1)[rows])
        ends, ends_of_keys, longest, longest_keys = lengths
        assert (ends.tolist(), longest, scale, window_size) == ([*ENDS], 9, 0.7, seen)
        assert (ends_of_keys.tolist(), longest_keys) == (key_ends, most)
        assert torch.equal(query, qkv[0][0].transpose(0, 1))
        return alone(qkv, scale, None, sequences)[0]

    monkeypatch.setattr(attention, "_has_varlen", lambda query: True)
    monkeypatch.setattr(attention, "_varlen_attention", lambda: kernel)
    ours = packed(qkv, sequences, scaling=0.7, sliding_window=window)
    torch.testing.assert_close(ours, alone(qkv, 0.7, None, sequences), rtol=0, atol=1e-12)


def test_under_autocast_the_kernel_gets_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary positions are float32 there, and queries and keys with them; the values are not."""
    *qk, value = (x.float() for x in inputs(4, 2))
    seen = []

    def kernel(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any
    ) -> torch.Tensor:
        seen.append([x.dtype for x in (query, key, value)])
        return query

    monkeypatch.setattr(attention, "_has_varlen", lambda query: query.dtype == torch.bfloat16)
    monkeypatch.setattr(attention, "_varlen_attention", lambda: kernel)
    packed([*qk, value.bfloat16()])
    assert seen == [[torch.bfloat16] * 3]


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("knows_groups", [False, True])
def test_pytorchs_kernel_is_called_as_each_version_of_it_can_be(
    heads: tuple[int, int], knows_groups: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch 2.11 has no ``enable_gqa``; key heads are laid out for each query head there."""
    qkv = [x.requires_grad_() for x in inputs(*heads)]
    calls = []

    def compute(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        q_ends: torch.Tensor,
        k_ends: torch.Tensor,
        longest_q: int,
        longest_k: int,
        scale: float | None,
        window_size: tuple[int, int],
    ) -> torch.Tensor:
        assert q_ends is k_ends and (longest_q, longest_k, scale, window_size) == (
            9,
            9,
            0.7,
            (-1, 0),
        )
        calls.append((q.shape[1], k.shape[1]))
        return alone([x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)], scale)[0]

    def of_2_11(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        qe: torch.Tensor,
        ke: torch.Tensor,
        ql: int,
        kl: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> torch.Tensor:
        assert q.shape[1] == k.shape[1] == v.shape[1]
        return compute(q, k, v, qe, ke, ql, kl, scale, window_size)

    def of_2_13(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        qe: torch.Tensor,
        ke: torch.Tensor,
        ql: int,
        kl: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        assert enable_gqa or q.shape[1] == k.shape[1] == v.shape[1]
        return compute(q, k, v, qe, ke, ql, kl, scale, window_size)

    monkeypatch.setattr(varlen, "varlen_attn", of_2_13 if knows_groups else of_2_11)
    monkeypatch.setattr(attention, "_has_varlen", lambda query: True)
    monkeypatch.setattr(attention, "_varlen_attention", attention._pytorch_varlen)
    ours, theirs = packed(qkv, scaling=0.7), alone(qkv, 0.7)
    assert calls == [heads if knows_groups else (heads[0], heads[0])]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    downstream = torch.randn(ours.shape, dtype=ours.dtype)
    torch.testing.assert_close(
        torch.autograd.grad(ours, qkv, downstream),
        torch.autograd.grad(theirs, qkv, downstream),
        rtol=0,
        atol=1e-12,
    )


def test_a_flash_attn_that_does_not_load_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only flash-attn-4 is there, whose folder has the same name: it is not ours."""
    versions = {"flash-attn": "2.8.4"}

    def version(name: str) -> str:
        try:
            return versions[name]
        except KeyError:
            raise PackageNotFoundError(name) from None

    monkeypatch.setattr(attention.importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    with pytest.raises(
        UserError, match=r"flash-attn 2\.8\.4 is installed but does not load.*remove"
    ):
        attention._varlen_attention.__wrapped__()
    versions.clear()
    versions["flash-attn-4"] = "4.0.0"
    assert attention._varlen_attention.__wrapped__().__qualname__.startswith("_pytorch_varlen")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("window", [None, 4])
def test_the_kernel_computes_what_the_other_path_does(
    heads: tuple[int, int], window: int | None, layout: str
) -> None:
    """bfloat16 against float64, outputs and gradients; head size 64, as kernels want it."""
    rng = torch.Generator().manual_seed(0)
    sizes = [(1, h, sum(LENGTHS), 64) for h in (heads[0], heads[1], heads[1])]
    exact = [torch.randn(s, dtype=torch.float64, generator=rng).bfloat16().double() for s in sizes]
    exact = [x.requires_grad_() for x in exact]
    half = [x.detach().to("cuda", torch.bfloat16).requires_grad_() for x in exact]
    ours, _ = packed_attention(
        torch.nn.Module(),
        *half,
        None,
        sequences=moved(LAYOUTS[layout], torch.device("cuda")),
        sliding_window=window,
    )
    theirs = alone(exact, 1 / 8, window, LAYOUTS[layout])
    torch.testing.assert_close(ours.double().cpu(), theirs, rtol=0, atol=0.03)
    downstream = torch.randn(theirs.shape, dtype=theirs.dtype, generator=rng)
    our_grads = torch.autograd.grad(ours, half, downstream.to("cuda", torch.bfloat16))
    their_grads = torch.autograd.grad(theirs, exact, downstream)
    for our, their in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(our.double().cpu(), their, rtol=0, atol=0.06)


@pytest.mark.parametrize(("window", "masked"), [(8, True), (9, False), (None, False)])
def test_a_mask_is_made_only_where_a_sequence_is_longer_than_the_window(
    window: int | None, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other kernels compute it."""
    masks = []

    def watched(
        *qkv: torch.Tensor, attn_mask: torch.Tensor | None = None, **options: Any
    ) -> torch.Tensor:
        masks.append(attn_mask)
        return scaled_dot_product_attention(*qkv, attn_mask=attn_mask, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", watched)
    packed(inputs(4, 2), sliding_window=window)
    assert any(m is not None for m in masks) == masked


def test_kernels_get_one_head_size_where_that_of_values_is_smaller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    query, key, value = inputs(4, 2)
    sizes = []

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append([x.shape[-1] for x in (q, k, v)])
        return alone([x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)], 0.7)[0]

    monkeypatch.setattr(attention, "_has_varlen", lambda query: True)
    monkeypatch.setattr(attention, "_varlen_attention", lambda: kernel)
    ours = packed([query, key, value[..., :5]], scaling=0.7)
    assert sizes == [[8, 8, 8]]
    torch.testing.assert_close(ours, alone([query, key, value], 0.7)[..., :5], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"softcap": 30.0}, "asks for softcap"),
        ({"s_aux": torch.ones(4)}, "asks for s_aux"),
        ({"position_bias": torch.ones(4), "new": 1}, "asks for new, position_bias"),
        ({"is_causal": False}, "looks ahead"),
    ],
)
def test_an_attention_variant_that_is_not_computed_is_refused(
    options: dict[str, Any], words: str
) -> None:
    qkv = inputs(4, 4)
    assert torch.equal(packed(qkv, **dict.fromkeys(options)), packed(qkv))
    with pytest.raises(NotImplementedError, match=words):
        packed(qkv, **options)


def test_a_mask_of_the_models_own_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="a mask, or a bias, of its own making"):
        packed_attention(torch.nn.Module(), *inputs(4, 4), torch.ones(9, 9))
