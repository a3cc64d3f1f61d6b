"""The embedded rollout engine: batched sampling with a transformers model.

It holds its own copy of the model, as a separate inference engine would, and receives the
policy's weights by name. For a CPU or one small GPU; its batches are decoded to the end before
the next one starts. A question's prompt is computed once, and so is all that several of its samples
begin with: see `ttrl.rollout.engines.decoding`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ttrl.models.pretrained import context_room, load_model
from ttrl.rollout.ends import completes, refuse_overflow, stop_ids, tail_length
from ttrl.rollout.engines.decoding import Decoding, branch, share_prompts
from ttrl.rollout.engines.sampled import Sampled
from ttrl.rollout.engines.watch import Watch
from ttrl.rollout.engines.weights import complete
from ttrl.rollout.sampling import SamplingParams, draw, sampling_logprobs
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks
from ttrl.system.rng import uniforms
from ttrl.types import Completion, Question

Row = tuple[int, int]
"""(index of the question, index of the sample)"""


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
        self._stop_S = torch.tensor(sorted(self.stop_ids), dtype=torch.int64, device=model.device)
        self._sliding = share_prompts(self.model)

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
    def next_logits(self, questions: Sequence[Question]) -> torch.Tensor:
        """Compute the logits [B, V] of the token that comes after each prompt."""
        prompts = [question.prompt_ids for question in questions]
        return Decoding(self.model, prompts, 1, self._sliding).logits_BV

    @torch.inference_mode()
    def _decode(
        self, questions: Sequence[Question], rows: Sequence[Row], params: SamplingParams
    ) -> list[Completion]:
        """Sample one completion per row, in order."""
        device = self.model.device
        first, last = rows[0][0], rows[-1][0]
        prompts = [q.prompt_ids for q in questions[first : last + 1]]
        branch_L = torch.tensor([q - first for q, _ in rows], device=device)
        streams = [(*params.stream, questions[q].id, params.first + i) for q, i in rows]
        uniform_RN = torch.from_numpy(uniforms(streams, params.max_new_tokens)).to(device)
        watch = None
        if params.floor is not None:
            ids = [questions[q].id for q, _ in rows]
            watch = Watch(params.floor, ids, params.max_new_tokens)
        sampled = Sampled(len(rows), params, device, watch)
        row_L = torch.arange(len(rows), device=device)  # which of them go on
        state = Decoding(self.model, prompts, params.max_new_tokens, self._sliding)
        for step in range(params.max_new_tokens):
            self.steps += 1
            logp_BV = sampling_logprobs(
                state.logits_BV, params.temperature, params.top_p, params.top_k, params.min_p
            )
            token_L = draw(logp_BV, uniform_RN[row_L, step], branch_L)
            sampled.add(step, row_L, token_L, logp_BV, branch_L)
            ended_L = self._ended(sampled, step, row_L, token_L, params)
            sampled.ended_R[row_L] = ended_L
            ended_L |= sampled.unsure(row_L)
            row_L, branch_L, token_L = row_L[~ended_L], branch_L[~ended_L], token_L[~ended_L]
            if len(row_L) == 0 or step + 1 == params.max_new_tokens:
                break
            parent_B, token_B, branch_L = branch(branch_L, token_L, logp_BV.shape[1])
            state.advance(parent_B, token_B)
        return sampled.completions(self.tokenizer)

    def _ended(
        self,
        sampled: Sampled,
        step: int,
        row_L: torch.Tensor,
        token_L: torch.Tensor,
        params: SamplingParams,
    ) -> torch.Tensor:
        """Say which rows the token that they have just drawn has ended."""
        ended_L = torch.isin(token_L, self._stop_S)
        if params.stop:
            begin = max(0, step + 1 - tail_length(params.stop))
            tails = sampled.token_RN[row_L, begin : step + 1].tolist()
            complete = [completes(tail, params.stop, self.tokenizer) for tail in tails]
            ended_L |= torch.tensor(complete, device=ended_L.device)
        return ended_L
