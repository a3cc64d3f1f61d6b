"""The output layer of a language model, with the log-probs and losses it leads to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ttrl_kernels.linear import linear_logprob, linear_policy_loss


class FusedLMHead(nn.Linear):
    """An `nn.Linear` whose forward can also give log-probs or the policy loss.

    The weight is used inside the module's own forward and nowhere else. So what FSDP, ZeRO-3 or
    any other hook does around a module's forward (gather the weight, count the call on every
    rank, reduce the gradient) happens here as for any other layer. A LoRA layer around it adds its
    own part to logits, cannot add it to a log-prob, and fails: the base weight is never read
    alone.
    """

    softcap: float | None = None
    """Cap of the logits before log-probs and losses. The model caps plain logits itself."""
    scale: float = 1.0
    """Factor of the logits before log-probs and losses. The model scales plain logits itself."""

    @classmethod
    def replace(cls, model: Any) -> FusedLMHead:
        """Turn the output layer of a transformers model into a FusedLMHead, in place.

        Only the class of the module changes. Its Parameters, tied or not, their names and the
        hooks on it stay what they are.

        Raises:
            TypeError: if the output layer is not a plain `nn.Linear`: then its weight is not all
                that its logits come from (LoRA, quantization), or is elsewhere (FSDP).
        """
        head = model.get_output_embeddings()
        if type(head) not in (nn.Linear, cls):
            kind = f"{type(head).__module__}.{type(head).__qualname__}"
            raise TypeError(
                f"the output layer of {type(model).__name__} is a {kind}, expected a "
                "torch.nn.Linear: replace it before FSDP wraps it; LoRA and quantization must "
                "leave it out"
            )
        head.__class__ = cls
        config = model.config.get_text_config()
        head.softcap = getattr(config, "final_logit_softcapping", None)
        head.scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
        head.scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
        if head.softcap is not None and head.scale != 1:
            raise TypeError(
                f"the logits of {type(model).__name__} are scaled (logit_scale, logits_scaling) "
                "and capped (final_logit_softcapping), in an order of its own: expected one of both"
            )
        fused: FusedLMHead = head
        return fused

    def forward(self, input: Tensor, targets: Tensor | None = None, **options: Any) -> Any:
        """Compute logits, log-probs or the policy loss, by what is given.

        - ``head(hidden)``: logits of [..., H], as any linear layer;
        - ``head(hidden_TH, targets_T, temperature=…)``: `linear_logprob`;
        - ``head(hidden_TH, targets_T, advantages_T=…, token_weights_T=…, …)``:
          `linear_policy_loss`.

        Under autocast the matrix products run in its dtype, as those of any linear layer do.

        Raises:
            TypeError: for options without targets.
            ValueError: see the two functions.
        """
        if targets is None:
            if options:
                raise TypeError(f"{', '.join(options)} without targets: logits need no options")
            return super().forward(input)
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if torch.is_autocast_enabled(input.device.type):
            dtype = torch.get_autocast_dtype(input.device.type)
            input, weight = input.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if self.scale != 1:  # exact, and also of a bias: a temperature divides all of a logit
            options["temperature"] = options.get("temperature", 1.0) / self.scale
        function = linear_policy_loss if "advantages_T" in options else linear_logprob
        return function(input, weight, targets, bias=bias, softcap=self.softcap, **options)
