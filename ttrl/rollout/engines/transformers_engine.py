"""The embedded rollout engine: batched sampling with a transformers model and its KV cache.

It holds its own copy of the model, as a separate inference engine would, and receives the
policy's weights by name. For a CPU or one small GPU; its batches are decoded to the end before
the next one starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ttrl.models.pretrained import context_room, load_model
from ttrl.rollout.ends import has_ended, refuse_overflow, stop_ids
from ttrl.rollout.engines.weights import complete
from ttrl.rollout.sampling import SamplingParams, draw, sampling_logprobs
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks
from ttrl.system.rng import generator
from ttrl.types import Completion, FinishReason, Question
from ttrl.types.top_logprobs import TopLogprobs

Row = tuple[int, int]
"""(index of the question, index of the sample)"""

Place = tuple[list[int], list[float]]
"""(ids, log-probs) of the likeliest tokens in one place"""

# Finished rows are cut out of the KV cache when this share of the batch is finished: cutting
# copies the cache, carrying dead rows computes them.
COMPACT_SHARE = 0.25


class TransformersEngine:
    """Samples completions; see `ttrl.rollout.engines.base.Engine` for the protocol."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> None:
        """Take over ``model``, which must not be the policy's own; ``batch_size`` in sequences."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.stop_ids = stop_ids(model, tokenizer)
        self.steps = 0

    @classmethod
    def load(
        cls,
        settings: Settings,
        tokenizer: PreTrainedTokenizerBase,
        ranks: Ranks,
        *,
        load_weights: bool,
    ) -> Self:
        """Load the settings' model, whose weights are read whether a push comes first or not."""
        model = load_model(settings.model, getattr(torch, settings.model.dtype))
        return cls(model, tokenizer, settings.rollout.batch_size)

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy a complete set of named parameters into the engine.

        Raises:
            RuntimeError: if the set is not complete; see `ttrl.rollout.engines.weights`.
        """
        own = dict(self.model.named_parameters())
        for name, tensor in complete(weights, {n: p.shape for n, p in own.items()}):
            own[name].copy_(tensor)

    def sleep(self) -> None:
        """Give nothing back: the model is small and has no cache between calls."""

    def close(self) -> None:
        """End nothing: the engine has started nothing."""

    def sample(
        self, questions: Sequence[Question], params: SamplingParams
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        """Yield (index of the question, its n completions), each as soon as it is complete.

        Raises:
            UserError: if a prompt leaves no room for ``max_new_tokens`` in the model's context.
        """
        refuse_overflow(questions, params, context_room(self.model))
        rows = [(q, i) for q in range(len(questions)) for i in range(params.n)]
        done: dict[int, list[Completion]] = {}
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            for (q, _), completion in zip(
                batch, self._decode(questions, batch, params), strict=True
            ):
                done.setdefault(q, []).append(completion)
                if len(done[q]) == params.n:
                    yield q, tuple(done.pop(q))

    @torch.inference_mode()
    def _decode(
        self, questions: Sequence[Question], rows: Sequence[Row], params: SamplingParams
    ) -> list[Completion]:
        """Sample one completion per row, in order."""
        length = params.max_new_tokens
        uniforms_BN = torch.from_numpy(
            np.stack(
                [
                    generator(*params.stream, questions[q].id, params.first + i).random(length)
                    for q, i in rows
                ]
            )
        )
        tokens: list[list[int]] = [[] for _ in rows]
        logprobs: list[list[float]] = [[] for _ in rows]
        likeliest: list[list[Place]] = [[] for _ in rows]
        state = self._prefill(questions, rows)
        alive_B = torch.arange(len(rows))  # which row of `rows` each row of the batch is
        finished_B = torch.zeros(len(rows), dtype=torch.bool)
        for step in range(length):
            self.steps += 1
            logp_BV = sampling_logprobs(
                state.logits_BV, params.temperature, params.top_p, params.top_k, params.min_p
            )
            token_B = draw(logp_BV, uniforms_BN[alive_B, step].to(logp_BV.device))
            chosen_B = logp_BV.gather(1, token_B.unsqueeze(1)).squeeze(1)
            ids, values = token_B.tolist(), chosen_B.tolist()
            places = _likeliest(logp_BV, params.noted)
            for b, row in enumerate(alive_B.tolist()):
                if not finished_B[b]:
                    tokens[row].append(ids[b])
                    logprobs[row].append(values[b])
                    likeliest[row] += places[b : b + 1]
            finished_B |= torch.tensor(
                [self._has_ended(tokens[row], params) for row in alive_B.tolist()]
            )
            if bool(finished_B.all()) or step + 1 == length:
                break
            if int(finished_B.sum()) >= COMPACT_SHARE * len(alive_B):
                keep_B = (~finished_B).nonzero().squeeze(1)
                state.select(keep_B)
                token_B, alive_B = token_B[keep_B], alive_B[keep_B]
                finished_B = finished_B[keep_B]
            self._advance(state, token_B)
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [
            Completion(
                tuple(t),
                tuple(lp),
                text,
                FinishReason.STOP if self._has_ended(t, params) else FinishReason.LENGTH,
                top_logprobs=TopLogprobs.of(top, whole=params.top_k > 0) if top else None,
            )
            for t, lp, text, top in zip(tokens, logprobs, texts, likeliest, strict=True)
        ]

    def _has_ended(self, tokens: Sequence[int], params: SamplingParams) -> bool:
        return has_ended(tokens, self.stop_ids, params.stop, self.tokenizer)

    def _prefill(self, questions: Sequence[Question], rows: Sequence[Row]) -> _Decoding:
        """Compute each prompt once, left-padded, and spread the result over its samples."""
        asked = sorted({q for q, _ in rows})
        prompts = [questions[q].prompt_ids for q in asked]
        width = max(len(p) for p in prompts)
        device = self.model.device
        ids_QP = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask_QP = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device
        )
        cache = DynamicCache(config=self.model.config)
        out = self.model(
            input_ids=ids_QP,
            attention_mask=mask_QP,
            position_ids=(mask_QP.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        state = _Decoding(out.logits[:, -1], mask_QP, mask_QP.sum(1), cache)
        place = {q: k for k, q in enumerate(asked)}
        state.select(torch.tensor([place[q] for q, _ in rows], device=device))
        return state

    def _advance(self, state: _Decoding, token_B: torch.Tensor) -> None:
        """Feed one token per row to the model."""
        ones_B1 = state.mask_BT.new_ones(len(token_B), 1)
        state.mask_BT = torch.cat([state.mask_BT, ones_B1], dim=1)
        out = self.model(
            input_ids=token_B.unsqueeze(1),
            attention_mask=state.mask_BT,
            position_ids=state.length_B.unsqueeze(1),
            past_key_values=state.cache,
            use_cache=True,
        )
        state.logits_BV = out.logits[:, -1]
        state.length_B = state.length_B + 1


def _likeliest(logp_BV: torch.Tensor, count: int) -> list[Place]:
    """Return the ``count`` likeliest tokens of each row, likeliest first; nothing for 0."""
    if count == 0:
        return []
    values_BK, ids_BK = logp_BV.topk(min(count, logp_BV.shape[1]), dim=-1)
    return list(zip(ids_BK.tolist(), values_BK.tolist(), strict=True))


class _Decoding:
    """State that a batch carries from token to token."""

    def __init__(
        self,
        logits_BV: torch.Tensor,
        mask_BT: torch.Tensor,
        length_B: torch.Tensor,
        cache: DynamicCache,
    ) -> None:
        self.logits_BV = logits_BV
        self.mask_BT = mask_BT
        self.length_B = length_B
        self.cache = cache

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may be named many times."""
        self.logits_BV = self.logits_BV[rows]
        self.mask_BT = self.mask_BT[rows]
        self.length_B = self.length_B[rows]
        self.cache.batch_select_indices(rows)
