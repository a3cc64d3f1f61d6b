"""Decoding with prompts that are held once: branches, their places, attention, and who can."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import tiny
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache

from ttrl.rollout.engines.decoding import Decoding, branch, share_prompts
from ttrl.rollout.engines.shared_prompts import SHARED, SharedPrompts, Slots, shared_attention

HEADS, KEY_HEADS, SIZE, VALUE_SIZE, PROMPT = 6, 2, 8, 5, 7


# ---------------------------------------------------------------------------------------------
# Branches


@given(
    drawn=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=20),
)
def test_branches_are_the_different_pairs_of_branch_and_token(drawn: list[tuple[int, int]]) -> None:
    branches, tokens = (torch.tensor(x) for x in zip(*drawn, strict=True))
    parent_B, token_B, branch_R = branch(branches, tokens, 4)
    pairs = list(zip(parent_B.tolist(), token_B.tolist(), strict=True))
    assert sorted(pairs) == sorted(set(drawn))
    assert [pairs[b] for b in branch_R.tolist()] == drawn
    parents = set(branches.tolist())
    for place in range(len(pairs)):  # whatever can stay in its place stays
        assert (place in parents) == (pairs[place][0] == place)


@given(questions=st.lists(st.integers(0, 4), min_size=1, max_size=20), heads=st.integers(1, 3))
def test_slots_hold_each_row_once_beside_the_others_of_its_question(
    questions: list[int], heads: int
) -> None:
    slots = Slots(torch.tensor(questions), 5)
    held, slot = (x.tolist() for x in slots.of_heads(heads))
    assert slots.width == max(map(questions.count, questions))
    assert len(held) == 5 * heads * slots.width
    for row, question in enumerate(questions):
        for head in range(heads):
            place = slot[row * heads + head]
            assert held[place] == row * heads + head
            assert place // slots.width == question * heads + head


# ---------------------------------------------------------------------------------------------
# Attention


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grown(
    length: int, first: list[int], *later: list[int]
) -> tuple[SharedPrompts, tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """A cache of three prompts and so many tokens, with all keys and values of each row, and what
    the cache handed out.

    ``first`` says which rows go on in the first step, ``later`` in the others, round and round.
    """
    prompts = DynamicCache()
    keys, values = random(3, KEY_HEADS, PROMPT, SIZE), random(3, KEY_HEADS, PROMPT, VALUE_SIZE)
    prompts.update(keys, values, 0)
    cache = SharedPrompts(prompts, [False])
    for step in range(length):
        rows = torch.tensor(first if step == 0 else later[(step - 1) % len(later)])
        cache.batch_select_indices(rows)
        key = random(len(rows), KEY_HEADS, 1, SIZE, seed=step)
        value = random(len(rows), KEY_HEADS, 1, VALUE_SIZE, seed=100 + step)
        keys, values = torch.cat([keys[rows], key], 2), torch.cat([values[rows], value], 2)
        own = cache.update(key, value, 0)
    assert cache.get_seq_length() == PROMPT + length
    return cache, (keys, values), own


AS_THEY_ARE = [0, 1, 2], [0, 1, 2]
STEPS = {
    "as they are": AS_THEY_ARE,
    "forked and ended": ([0, 1, 2, 1, 1, 0], [0, 1, 4, 3], [2, 1, 0], [0, 1, 2, 1, 1, 0]),
    "without the first prompt": ([2, 1, 1, 1], [0, 1, 2, 3]),
}


@pytest.mark.parametrize("masked", [None, "bool", "float", "by head"])
@pytest.mark.parametrize("length", [1, 8, 9, 40])  # with room to spare, without, and grown
@pytest.mark.parametrize("steps", STEPS)
def test_attention_is_that_over_prompt_and_own_keys_side_by_side(
    steps: str, length: int, masked: str | None
) -> None:
    cache, (keys, values), own = grown(length, *STEPS[steps])
    rows = len(keys)
    query = random(rows, HEADS, 1, SIZE, seed=9)
    mask = None
    if masked is not None:
        mask = random(rows, HEADS if masked == "by head" else 1, 1, keys.shape[2], seed=3)
        if masked == "bool":
            mask = mask > -0.5
            mask[..., -1] = True
    ours, weights = shared_attention(
        torch.nn.Module(), query, *own, mask, scaling=0.3, dropout=0.0, sliding_window=4
    )
    expected = scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, scale=0.3, enable_gqa=True
    )
    assert weights is None
    torch.testing.assert_close(ours, expected.transpose(1, 2), rtol=0, atol=2e-6)
    cache.refuse_unread()


def test_without_such_a_cache_it_is_the_usual_attention() -> None:
    q, k, v = random(2, HEADS, 4, SIZE), random(2, KEY_HEADS, 4, SIZE), random(2, KEY_HEADS, 4, 8)
    module: Any = SimpleNamespace(num_key_value_groups=HEADS // KEY_HEADS, is_causal=True)
    ours, _ = shared_attention(module, q, k, v, None, scaling=0.3)
    expected = scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(ours, expected.transpose(1, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"value": True}, "other values than its cache holds"),
        ({"softcap": 30.0}, "asks for softcap"),
        ({"s_aux": 1, "position_bias": 2}, "asks for position_bias, s_aux"),
    ],
)
def test_what_is_not_computed_is_refused(changes: dict[str, Any], said: str) -> None:
    cache, _, (keys, values) = grown(2, *AS_THEY_ARE)
    other = values + 0 if changes.pop("value", False) else values
    with pytest.raises(NotImplementedError, match=said):
        shared_attention(torch.nn.Module(), random(3, HEADS, 1, SIZE), keys, other, None, **changes)
    with pytest.raises(NotImplementedError, match="layer 0 computes attention in its own way"):
        cache.refuse_unread()


def test_several_tokens_at_once_are_refused() -> None:
    cache, _, _ = grown(1, *AS_THEY_ARE)
    with pytest.raises(NotImplementedError, match="several tokens"):
        cache.update(random(3, KEY_HEADS, 2, SIZE), random(3, KEY_HEADS, 2, VALUE_SIZE), 0)


# ---------------------------------------------------------------------------------------------
# Models


@pytest.mark.parametrize(
    ("name", "sliding"),
    [
        ("qwen2", [False, False, True, True]),
        ("llama", [False] * 4),
        ("qwen3_moe", [False] * 4),
        ("mistral", [True] * 4),
        ("diffllama", None),  # attends twice, to halves of its values
        ("vaultgemma", None),  # caps its scores
        ("deepseek_v2", None),  # pads its keys
        ("qwen3_next", None),  # keeps states of linear attention
        ("falcon", None),  # its attention is its own
    ],
)
def test_which_models_share_prompts(name: str, sliding: list[bool] | None) -> None:
    """Others keep the attention that they had."""
    model = tiny(name)
    assert share_prompts(model) == sliding
    assert model.config._attn_implementation == ("sdpa" if sliding is None else SHARED)


@torch.inference_mode()
def test_in_bfloat16_logits_are_as_near_to_float32_as_those_of_the_usual_cache() -> None:
    model = tiny_model("qwen2", num_hidden_layers=4).to(torch.bfloat16)
    exact = tiny_model("qwen2", num_hidden_layers=4)
    exact.load_state_dict(model.state_dict())
    sliding = share_prompts(model)
    assert sliding is not None
    tokens = random(30, 2, seed=1).abs().mul(50).long()
    parents = torch.arange(2)

    def logits(network: Any, slides: list[bool] | None) -> torch.Tensor:
        state = Decoding(network, [[5, 6, 7], [8]], 30, slides)
        found = []
        for token_B in tokens:
            state.advance(parents, token_B)
            found.append(state.logits_BV.float())
        return torch.stack(found)

    expected = logits(exact, None)
    ours = (logits(model, sliding) - expected).square().mean().sqrt()
    model.set_attn_implementation("sdpa")
    usual = (logits(model, None) - expected).square().mean().sqrt()
    assert 0 < ours < 1.2 * usual
