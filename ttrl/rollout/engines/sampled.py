"""What a batch has sampled so far, in tensors: they become Python lists once, at the end."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from ttrl.rollout.engines.watch import Watch
from ttrl.rollout.sampling import SamplingParams
from ttrl.types import Completion, FinishReason
from ttrl.types.top_logprobs import TopLogprobs


class Sampled:
    """Tokens and log-probs of R completions, of at most N tokens each."""

    def __init__(
        self,
        rows: int,
        params: SamplingParams,
        device: torch.device,
        watch: Watch | None = None,
    ) -> None:
        """Begin with R empty completions; ``watch`` says which are broken off."""
        limit = params.max_new_tokens
        self.token_RN = torch.zeros(rows, limit, dtype=torch.int64, device=device)
        self.logp_RN = torch.zeros(rows, limit, device=device)
        self.length_R = torch.zeros(rows, dtype=torch.int64, device=device)
        self.ended_R = torch.zeros(rows, dtype=torch.bool, device=device)
        """Whether a stop token or string ended the row."""
        self._unsure_R = self.ended_R.clone()
        self._watch = watch
        self._top: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._params = params

    def add(
        self,
        step: int,
        row_L: torch.Tensor,
        token_L: torch.Tensor,
        logp_BV: torch.Tensor,
        branch_L: torch.Tensor,
    ) -> None:
        """Note the tokens at place ``step`` of L rows, each drawn from one of B distributions."""
        self.length_R[row_L] = step + 1
        self.token_RN[row_L, step] = token_L
        self.logp_RN[row_L, step] = logp_BV[branch_L, token_L]
        if self._params.noted:
            values_BK, ids_BK = logp_BV.topk(min(self._params.noted, logp_BV.shape[1]), dim=-1)
            self._top.append((row_L, ids_BK.int()[branch_L], values_BK[branch_L]))

    def unsure(self, row_L: torch.Tensor) -> torch.Tensor:
        """Say which rows are broken off with the token that was added last."""
        if self._watch is None:
            return torch.zeros_like(row_L, dtype=torch.bool)
        _, _, values_LK = self._top[-1]
        low_L = self._watch.below(row_L.cpu().numpy(), values_LK.double().cpu().numpy())
        unsure_L = torch.from_numpy(low_L).to(row_L.device)
        self._unsure_R[row_L] = unsure_L
        return unsure_L

    def completions(self, tokenizer: PreTrainedTokenizerBase) -> list[Completion]:
        """Return all of them."""
        lengths = self.length_R.tolist()
        tokens = [t[:n] for t, n in zip(self.token_RN.tolist(), lengths, strict=True)]
        logprobs = [x[:n] for x, n in zip(self.logp_RN.tolist(), lengths, strict=True)]
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        rows = zip(tokens, logprobs, texts, self._reasons(), self._likeliest(), strict=True)
        return [
            Completion(
                tuple(ids),
                tuple(values),
                text,
                reason,
                top_logprobs=top,
            )
            for ids, values, text, reason, top in rows
        ]

    def _reasons(self) -> list[FinishReason]:
        """Return why each ended; one that has come to its end by itself was not broken off."""
        ends = zip(self.ended_R.tolist(), self._unsure_R.tolist(), strict=True)
        rest = {True: FinishReason.UNSURE, False: FinishReason.LENGTH}
        return [FinishReason.STOP if ended else rest[unsure] for ended, unsure in ends]

    def _likeliest(self) -> list[TopLogprobs | None]:
        """Return the likeliest tokens at each place of each row; None where none were noted."""
        if not self._top:
            return [None] * len(self.length_R)
        places: list[list[tuple[list[int], list[float]]]] = [[] for _ in self.length_R]
        for row_L, ids_LK, values_LK in self._top:
            for row, ids, values in zip(
                row_L.tolist(), ids_LK.tolist(), values_LK.tolist(), strict=True
            ):
                places[row].append((ids, values))
        whole = self._params.top_k > 0
        return [TopLogprobs.of(top, whole=whole) for top in places]
