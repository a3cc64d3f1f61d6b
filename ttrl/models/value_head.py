"""A value head: one number per token, in the place of a language model's output layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class ValueHead(nn.Linear):
    """A linear layer without bias, from hidden states to values.

    It starts from zero: at first every value is 0, and nothing has to be drawn.
    """

    @classmethod
    def replace(cls, model: PreTrainedModel) -> ValueHead:
        """Put a value head in the place of the output layer of ``model``; other weights stay."""
        old = model.get_output_embeddings()  # whose weight may be divided over ranks
        weight = old.weight
        head = cls(old.in_features, 1, bias=False, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(head.weight)
        model.set_output_embeddings(head)
        return head

    def forward(self, input: Tensor, targets: Tensor | None = None, **_: Any) -> Tensor:
        """Compute the values [T] of hidden states [T, H], in float32: of the tokens to come."""
        values: Tensor = super().forward(input).squeeze(-1)
        return values.to(torch.promote_types(values.dtype, torch.float32))
