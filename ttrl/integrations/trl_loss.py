"""Our loss inside TRL's GRPOTrainer."""

from __future__ import annotations

import functools
from importlib.metadata import version
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from ttrl_kernels import FusedLMHead, PolicyLoss

from ttrl.types import UserError

Trainer: Any = object
"""TRL's, which a user's own class brings."""
TRL_VERSION = "1.16"
"""The one whose private methods are overridden here."""
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""Values of `loss_type` with PPO's clipped policy term; they differ in the token weights."""


class FusedLossMixin(Trainer):  # type: ignore[misc]
    """Makes GRPOTrainer compute its loss by `ttrl_kernels.linear_policy_loss`.

    The loss of the configuration, to rounding: no logits are kept, and tokens without a gradient
    (clipped ones, and those of advantage 0) cost one matrix product instead of three. TRL's metrics
    stay, and so does all else: sampling, rewards, advantages, log-probs of the old policy and of
    the reference. For TRL 1.16, on one process or under DDP.

    Example::

        class Trainer(FusedLossMixin, GRPOTrainer):
            pass
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make the trainer; the arguments are those of `GRPOTrainer`.

        Raises:
            UserError: for another version of TRL, a setting that our loss does not know, or a model
                whose output layer is not a plain `torch.nn.Linear`.
        """
        super().__init__(*args, **kwargs)
        self._scores: tuple[Tensor, Tensor, None] | None = None
        refused = not_known(self)
        if refused is not None:
            raise UserError(f"FusedLossMixin: {refused}, or leave the mixin out")
        _add_policy_loss(getattr(self.model, "get_base_model", lambda: self.model)())

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        mask_BC = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        with self.accelerator.autocast():
            result: PolicyLoss = model(
                input_ids=torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
                attention_mask=torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
                policy_loss=self._options(inputs, mask_BC),
            )
        logp_BC, entropy_BC = (x.view(mask_BC.shape) for x in (result.logp_T, result.entropy_T))
        self._scores = (logp_BC, entropy_BC, None)
        try:
            with torch.no_grad():
                super()._compute_loss(model, inputs)  # for its metrics
        finally:
            self._scores = None
        return result.loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if self._scores is not None:
            return self._scores
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _options(self, inputs: dict[str, Any], mask_BC: Tensor) -> dict[str, Any]:
        """Return what `linear_policy_loss` is to be told."""
        args = self.args
        advantages = inputs["advantages"]
        advantages_BC = advantages if advantages.dim() == 2 else advantages[:, None]
        if self.use_vllm and self.vllm_importance_sampling_correction:
            advantages_BC = advantages_BC * inputs["importance_sampling_ratio"]
        sequences_BC = torch.arange(len(mask_BC), device=mask_BC.device)[:, None].expand_as(mask_BC)
        old_BC, ref_BC = inputs.get("old_per_token_logps"), inputs.get("ref_per_token_logps")
        policy = {
            "policy": "ppo_clip",
            "clip_low": self.epsilon_low,
            "clip_high": self.epsilon_high,
            "dual_clip": args.delta,
        }
        if self.loss_type == "cispo":  # one bound, on the ratio's value
            policy = {"policy": "cispo", "clip_low": 1.0, "clip_high": self.epsilon_high - 1}
        elif self.loss_type == "sapo":
            policy = {"policy": "sapo"}
        return {
            **policy,
            "targets": inputs["completion_ids"].flatten(),
            "advantages_T": advantages_BC.expand_as(mask_BC).flatten(),
            "token_weights_T": self._token_weights(inputs, mask_BC).flatten(),
            "old_logp_T": None if old_BC is None else old_BC.flatten(),
            "ref_logp_T": None if ref_BC is None else ref_BC.flatten(),
            "sequence_ids_T": sequences_BC.flatten(),
            "ratio_level": self.importance_sampling_level,
            "off_policy_mask": self.off_policy_mask_threshold,
            "kl_coef": self.beta,
            "kl_bias_correction": args.use_bias_correction_kl,
            "temperature": self.temperature,
        }

    def _token_weights(self, inputs: dict[str, Any], mask_BC: Tensor) -> Tensor:
        """Return the weight of each token, by `loss_type`: 1 over what TRL divides by."""
        steps = self.current_gradient_accumulation_steps if self.model.training else 1
        total: Any = len(mask_BC) * steps  # luspo: by sequences
        if self.loss_type in ("dapo", "cispo"):  # by the tokens of all ranks and micro-batches
            total = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
            if self.model.training:
                total = total * steps / self.args.steps_per_generation
        elif self.loss_type == "bnpo":
            total = mask_BC.sum().clamp(min=1) * steps
        elif self.loss_type == "dr_grpo":
            total = total * self.max_completion_length
        elif self.loss_type in ("grpo", "sapo"):
            total = total * mask_BC.sum(1, keepdim=True).clamp(min=1)
        weights_BC: Tensor = mask_BC.to(inputs["advantages"].dtype) / total
        return weights_BC


def not_known(trainer: Any) -> str | None:
    """Say what is set that our loss does not honour, and what to do; None: nothing is."""
    args, level = trainer.args, trainer.importance_sampling_level
    if not version("trl").startswith(f"{TRL_VERSION}."):
        return f"TRL is {version('trl')}, expected {TRL_VERSION}: install it"
    if trainer.loss_type not in (*CLIPPED, "cispo", "sapo"):
        return f"loss_type = {trainer.loss_type!r} is none of ours: take 'dapo', for example"
    temperatures = (args.sapo_temperature_pos, args.sapo_temperature_neg)
    if trainer.loss_type == "sapo" and temperatures != (1.0, 1.05):
        return (
            f"sapo_temperature_pos, _neg = {temperatures}: ours are the paper's, set 1.0 and 1.05"
        )
    if args.delta is not None and trainer.loss_type not in CLIPPED:
        return f"delta has no meaning with loss_type = {trainer.loss_type!r}: unset it"
    if args.delta is not None and args.delta <= 1 + trainer.epsilon_high:
        return f"delta = {args.delta} is not above 1 + epsilon_high: raise it"
    if level == "sequence" and trainer.beta != 0 and args.use_bias_correction_kl:
        return (
            "our KL is corrected by each token's own ratio, TRL's by the sequence's with "
            "importance_sampling_level = 'sequence': set use_bias_correction_kl = False"
        )
    if trainer.off_policy_mask_threshold is not None and trainer.use_vllm:
        return (
            "off_policy_mask_threshold is measured against vLLM's log-probs in TRL, here "
            "against the old policy's: unset it"
        )
    if trainer.top_entropy_quantile < 1:
        return "top_entropy_quantile needs all entropies before the loss: set it to 1.0"
    if args.entropy_coef != 0 or args.use_adaptive_entropy:
        return "TRL's entropy bonus is a mean of its own: set entropy_coef = 0.0"
    if trainer.aux_loss_enabled:
        return "the routers' auxiliary loss is not computed: set router_aux_loss_coef = 0.0"
    if args.cast_lm_head_to_fp32:
        return "cast_lm_head_to_fp32 replaces the output layer: unset it, sums are in float32 here"
    if trainer._is_vlm:
        return "only models of text alone are known: pass a tokenizer, no processor"
    if trainer.is_fsdp_enabled:
        return "FSDP takes the output layer's weight away: use DDP"
    config = trainer.model.config.get_text_config()
    scaled = [getattr(config, name, 1) for name in ("output_multiplier", "lm_head_multiplier")]
    if any(factor not in (None, 1) for factor in scaled) or config.model_type == "hyperclovax":
        return f"models of type {config.model_type!r} scale logits in their own way: take another"
    adapters = getattr(trainer.model, "peft_config", {}).values()
    if any(adapter.is_prompt_learning for adapter in adapters):
        return "prompt learning puts tokens before the prompt: use LoRA"
    return None


def _add_policy_loss(model: Any) -> None:
    """Let ``model(..., policy_loss=options)`` return the loss of the tokens at its end.

    The head is called inside of the model's forward, as DDP and hooks of others expect.
    """
    FusedLMHead.replace(model)
    plain = model.forward

    @functools.wraps(type(model).forward)  # `generate` looks at the signature
    def forward(self: Any, *args: Any, policy_loss: Any = None, **kwargs: Any) -> Any:
        if policy_loss is None:
            return plain(*args, **kwargs)
        hidden_BSH = self.base_model(*args, **kwargs, use_cache=False).last_hidden_state
        completion = len(policy_loss["targets"]) // len(hidden_BSH)
        hidden_BCH = hidden_BSH[:, -completion - 1 : -1]  # a row predicts the next token
        return self.get_output_embeddings()(hidden_BCH.flatten(0, 1), **policy_loss)

    model.forward = MethodType(forward, model)
