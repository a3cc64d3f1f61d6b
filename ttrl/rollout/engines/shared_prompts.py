"""A KV cache in which all samples of a question share its prompt, and attention over it.

Decoding adds one token per row and step. A row's keys are its prompt's, computed and held once per
question, and those of its own tokens, written in place into room that grows in a few large pieces:

    prompt_keys_QKPD   per question, read once for all of its rows: one matrix product
    own_keys_BKRD      per row, of which the first ``used`` of R places are in use

Prompts are padded on the left. A row's keys in order are [prompt, own], as many for every row, so
a mask that transformers makes for one growing cache (padding, windows, chunks) holds here as well.

`shared_attention` computes what transformers' ``sdpa`` function does with query, keys, values,
mask and scaling. It is told of the cache by the keys themselves: what `SharedLayer.update` hands
out must reach it untouched. A model that does something else with its keys, computes attention by
itself, or asks for a variant (a bias, sinks, a softcap) raises a NotImplementedError, or makes
`SharedPrompts.refuse_unread` do so.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ttrl.models.attention import HARMLESS

SHARED = "ttrl_shared_prompts"
"""The name under which a model finds `shared_attention`; without such a cache it is ``sdpa``."""

NO_MATTER = HARMLESS | {"sliding_window", "output_router_logits"}
"""Arguments of attention that change nothing for one query: it sees what its mask leaves."""

LEAST_ROOM = 8
"""Places that a row's own keys begin with; room grows by a quarter, and by so many at least. All of
it is multiplied: a product of part of each row's room would copy that part first."""


class Slots:
    """Where each of B rows stands in a rectangle [Q, M]: its question, and a place among its rows.

    In it the rows of a question are one matrix. Places that no row takes hold some row or other.
    """

    def __init__(self, question_B: torch.Tensor, questions: int) -> None:
        """Give each row of a question the next place; one sort, and no row moves."""
        rows = len(question_B)
        order_B = question_B.argsort(stable=True)
        count_Q = question_B.bincount(minlength=questions)
        first_Q = count_Q.cumsum(0) - count_Q
        place_B = torch.empty_like(question_B)
        sorted_B = question_B[order_B]
        place_B[order_B] = torch.arange(rows, device=order_B.device) - first_Q[sorted_B]
        self.question_B = question_B
        self.questions, self.width = questions, int(count_Q.max())
        self._place_B = place_B
        self._by_heads: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def of_heads(self, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the row-and-head that each of [Q, K, M] slots holds, and the slot of each [B, K].

        Both are flat, and the same for all layers with so many key heads.
        """
        if heads not in self._by_heads:
            head_K = torch.arange(heads, device=self.question_B.device)
            slot_BK = self.question_B.unsqueeze(1) * heads + head_K
            slot_BK = (slot_BK * self.width + self._place_B.unsqueeze(1)).flatten()
            held_QKM = slot_BK.new_zeros(self.questions * heads * self.width)
            held_QKM[slot_BK] = torch.arange(len(slot_BK), device=slot_BK.device)
            self._by_heads[heads] = held_QKM, slot_BK
        return self._by_heads[heads]


class SharedLayer(CacheLayerMixin):
    """Keys and values of one layer; see the module."""

    keys: torch.Tensor
    values: torch.Tensor
    """Of own tokens: [C, K, R, D], of which B rows and ``used`` places are in use."""

    def __init__(self, prompt: Any, slots: Slots, *, is_sliding: bool) -> None:
        """Take over the keys and values [Q, K, P, D] of a prefilled layer."""
        super().__init__()  # type: ignore[no-untyped-call]
        # At least float32, so that products of half precision are not rounded before the softmax.
        kind = torch.promote_types(prompt.keys.dtype, torch.float32)
        self.prompt_keys_QKPD = prompt.keys.to(kind).contiguous()
        self.prompt_values_QKPD = prompt.values.to(kind).contiguous()
        self.slots = slots
        self.is_sliding = is_sliding
        self.is_initialized = True
        self.used = 0
        self.unread = False
        self.keys = self.prompt_keys_QKPD[:, :, :0]
        self.values = self.prompt_values_QKPD[:, :, :0]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: the prompts came first."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values [B, K, 1, D] of the next token; return those of all own tokens.

        Raises:
            NotImplementedError: for more than one token.
        """
        rows, _, tokens, _ = key_states.shape
        if tokens != 1:
            raise NotImplementedError("its layers cache several tokens in a decoding step")
        if self.used == self.keys.shape[2]:
            self._make_room(rows, self.used + max(LEAST_ROOM, self.used // 4))
        self.keys[:rows, :, self.used] = key_states[:, :, 0]
        self.values[:rows, :, self.used] = value_states[:, :, 0]
        self.used += 1
        self.unread = True
        keys, values = (own[:rows, :, : self.used] for own in (self.keys, self.values))
        keys.shared = self, values  # type: ignore[attr-defined]
        return keys, values

    def select(self, rows: torch.Tensor, slots: Slots, kept_Q: torch.Tensor | None) -> None:
        """Keep these rows, and of the prompts those in ``kept_Q``; None keeps all."""
        if len(rows) > len(self.keys):
            self._make_room(max(len(rows), len(self.keys) * 5 // 4), self.keys.shape[2])
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().squeeze(1)
        if len(moved):
            for own in (self.keys, self.values):
                own[moved, :, : self.used] = own[rows[moved], :, : self.used]
        if kept_Q is not None:
            self.prompt_keys_QKPD = self.prompt_keys_QKPD[kept_Q]
            self.prompt_values_QKPD = self.prompt_values_QKPD[kept_Q]
        self.slots = slots

    def _make_room(self, rows: int, places: int) -> None:
        """Move the own keys and values to tensors of another size."""
        for name, own in (("keys", self.keys), ("values", self.values)):
            # Zeros, because what is masked is multiplied too, by 0.
            roomy = own.new_zeros(rows, own.shape[1], places, own.shape[3])
            both = min(rows, len(own))
            roomy[:both, :, : self.used] = own[:both, :, : self.used]
            setattr(self, name, roomy)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys the next query sees, and the place of the first one."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Count the keys of a row, padding included."""
        return int(self.prompt_keys_QKPD.shape[2]) + self.used

    def get_max_length(self) -> int:
        """Return -1: it grows."""
        return -1


class SharedPrompts(Cache):
    """The cache of a batch that decodes, made of one that holds the prompts; see the module."""

    layers: list[SharedLayer]  # type: ignore[assignment]

    def __init__(self, prompts: Cache, sliding: list[bool]) -> None:
        """Begin with a row for each prompt; ``sliding`` says which layers have a window."""
        first: Any = prompts.layers[0]
        questions = len(first.keys)
        self._slots = Slots(torch.arange(questions, device=first.keys.device), questions)
        super().__init__(
            layers=[
                SharedLayer(layer, self._slots, is_sliding=slides)
                for layer, slides in zip(prompts.layers, sliding, strict=True)
            ]
        )

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order, each as often as it is named.

        What stays in its place costs nothing.
        """
        question_B, questions, kept_Q = self._slots.question_B[indices], self._slots.questions, None
        asked_Q = question_B.bincount(minlength=questions) > 0
        if not bool(asked_Q.all()):
            kept_Q = asked_Q.nonzero().squeeze(1)
            question_B = (asked_Q.cumsum(0) - 1)[question_B]
            questions = len(kept_Q)
        self._slots = Slots(question_B, questions)
        for layer in self.layers:
            layer.select(indices, self._slots, kept_Q)

    def refuse_unread(self) -> None:
        """Raise a NotImplementedError if a layer's keys have not come to `shared_attention`."""
        for place, layer in enumerate(self.layers):
            if layer.unread:
                raise NotImplementedError(f"layer {place} computes attention in its own way")


def sliding_layers(config: Any) -> list[bool]:
    """Say of each layer of a model whether it has a sliding window.

    Raises:
        NotImplementedError: if a layer keeps something else than keys and values of tokens.
    """
    layers = DynamicCache(config=config).layers
    for layer in layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise NotImplementedError(f"its cache has a {type(layer).__name__}")
    return [type(layer) is DynamicSlidingWindowLayer for layer in layers]


def shared_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with H queries of one token [B, H, 1, D] over K key heads; return [B, 1, H, D].

    Raises:
        NotImplementedError: for attention variants that this function does not compute.
    """
    layer: SharedLayer | None
    layer, own = getattr(key, "shared", (None, value))
    if layer is None:  # no decoding step: a prompt, or a whole sequence
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **other
        )
    asked = sorted(k for k, v in other.items() if v is not None and k not in NO_MATTER)
    if asked:
        raise NotImplementedError(f"its attention asks for {', '.join(asked)}")
    if value is not own:
        raise NotImplementedError("its attention takes other values than its cache holds")
    layer.unread = False
    rows, heads, _, size = query.shape
    own_keys, own_values = (own[:rows].flatten(0, 1) for own in (layer.keys, layer.values))
    key_heads, (room, used) = layer.keys.shape[1], (own_keys.shape[1], layer.used)
    group = heads // key_heads
    held, slot = layer.slots.of_heads(key_heads)
    query_CGD = query.reshape(rows * key_heads, group, size).to(layer.keys.dtype)
    prompt_keys = layer.prompt_keys_QKPD.flatten(0, 1)
    prompt_values = layer.prompt_values_QKPD.flatten(0, 1)
    padded = len(prompt_keys), layer.slots.width * group, -1  # [Q * K, M * G, ...]

    # C = B * K; in the scores, the keys are in the order [own, prompt].
    of_prompt = torch.bmm(
        query_CGD.flatten(1).index_select(0, held).view(*padded[:2], size),
        prompt_keys.transpose(1, 2),
    )
    width = prompt_keys.shape[1]
    of_prompt = of_prompt.view(-1, group * width).index_select(0, slot).view(-1, group, width)
    scores = torch.cat([torch.bmm(query_CGD, own_keys.transpose(1, 2)), of_prompt], dim=-1)
    scores *= size**-0.5 if scaling is None else scaling
    scores[..., used:room] = -torch.inf
    if attention_mask is not None:
        by_head = scores.view(rows, heads, 1, room + width)
        _apply(attention_mask[..., :width], by_head[..., room:])
        _apply(attention_mask[..., width:], by_head[..., :used])
    probs = scores.softmax(-1)

    out = torch.bmm(probs[..., :room], own_values)
    of_prompt = probs[..., room:].reshape(-1, group * width).index_select(0, held)
    of_prompt = torch.bmm(of_prompt.view(*padded[:2], width), prompt_values)
    out += of_prompt.view(-1, *out[0].shape).index_select(0, slot)
    return out.view(rows, 1, heads, -1).to(query.dtype), None


def _apply(mask: torch.Tensor, scores: torch.Tensor) -> None:
    """Put a mask [B, 1 or H, 1, n] of transformers' onto scores [B, H, 1, n], in place."""
    if mask.dtype == torch.bool:
        scores.masked_fill_(~mask, -torch.inf)
    else:
        scores += mask


AttentionInterface.register(SHARED, shared_attention)
AttentionMaskInterface.register(SHARED, sdpa_mask)
