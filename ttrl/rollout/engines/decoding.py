"""A batch of branches that a transformers model continues, token by token, with its cache.

Of the samples of a question, many begin alike. Those that have drawn the same tokens so far are one
branch: its next logits are computed once, and each sample draws from them with its own random
numbers. What they draw parts it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

from ttrl.rollout.engines.shared_prompts import SHARED, SharedPrompts, sliding_layers


class Decoding:
    """What B branches carry from token to token: at first one of each prompt."""

    logits_BV: torch.Tensor
    """Of each branch's next token."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        room: int,
        sliding: list[bool] | None,
    ) -> None:
        """Compute prompts, left-padded.

        Args:
            model: a causal LM.
            prompts: token ids, of any lengths.
            room: tokens that may follow.
            sliding: what `share_prompts` has found out about the model.
        """
        device = model.device
        self._model, self._width = model, max(map(len, prompts))
        self._position_B = torch.tensor([len(p) for p in prompts], device=device)
        place_T = torch.arange(self._width + room, device=device)
        self._mask_BT = place_T >= self._width - self._position_B.unsqueeze(1)
        mask_BP = self._mask_BT[:, : self._width]
        cache = DynamicCache() if sliding else DynamicCache(config=model.config)
        out = model(
            input_ids=torch.tensor(
                [[0] * (self._width - len(p)) + list(p) for p in prompts], device=device
            ),
            attention_mask=mask_BP,
            position_ids=(mask_BP.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits_BV = out.logits[:, -1]
        self._cache = SharedPrompts(cache, sliding) if sliding else cache

    def advance(self, parent_B: torch.Tensor, token_B: torch.Tensor) -> None:
        """Go on with these branches, as often as each is named, by one token each."""
        before = torch.arange(len(self._position_B), device=parent_B.device)
        if not torch.equal(parent_B, before):
            self._cache.batch_select_indices(parent_B)
            self._mask_BT, self._position_B = self._mask_BT[parent_B], self._position_B[parent_B]
        self._width += 1
        out = self._model(
            input_ids=token_B.unsqueeze(1),
            attention_mask=self._mask_BT[:, : self._width],
            position_ids=self._position_B.unsqueeze(1),
            past_key_values=self._cache,
            use_cache=True,
        )
        if isinstance(self._cache, SharedPrompts):
            self._cache.refuse_unread()
        self.logits_BV = out.logits[:, -1]
        self._position_B = self._position_B + 1


def branch(
    branch_R: torch.Tensor, token_R: torch.Tensor, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the branches that R rows, with a further token each, are on.

    Rows that have drawn the same tokens since their prompt are on the same branch, which is
    computed once.

    Args:
        branch_R: on which branch each row was.
        token_R: the token that it has drawn.
        vocabulary: how many there are.

    Returns:
        for each new branch the one that it goes on from, in whose place it is where that is
        possible, and its token; for each row its new branch.
    """
    pair_B, pair_R = (branch_R * vocabulary + token_R).unique(return_inverse=True)  # sorted
    parent_B, token_B = pair_B // vocabulary, pair_B % vocabulary
    count = len(parent_B)
    stays_B = parent_B < count
    stays_B[1:] &= parent_B[1:] != parent_B[:-1]
    taken_B = torch.zeros(count, dtype=torch.bool, device=parent_B.device)
    taken_B[parent_B[stays_B]] = True
    place_B = torch.empty_like(parent_B)
    place_B[stays_B] = parent_B[stays_B]
    place_B[~stays_B] = (~taken_B).nonzero().squeeze(1)
    order_B = place_B.argsort()
    return parent_B[order_B], token_B[order_B], place_B[pair_R]


@torch.inference_mode()
def share_prompts(model: PreTrainedModel) -> list[bool] | None:
    """Let the model decode with `SharedPrompts`, if one prompt with two answers shows that it can.

    Returns:
        for each layer whether it has a sliding window; None for a model that caches or attends in
        a way of its own, and goes on with transformers' cache and attention: slower, and as exact.
    """
    usual = model.config._attn_implementation
    try:
        sliding = sliding_layers(model.config)
        model.set_attn_implementation(SHARED)
        zero_B = torch.zeros(2, dtype=torch.int64, device=model.device)
        Decoding(model, [[0]], room=1, sliding=sliding).advance(zero_B, zero_B)
    except torch.OutOfMemoryError:  # which is not the model's fault
        raise
    except Exception:  # a model's own attention fails in many ways without the prompt's keys
        model.set_attn_implementation(usual)
        return None
    return sliding
