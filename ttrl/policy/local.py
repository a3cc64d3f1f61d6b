"""The policy in one process: a transformers causal LM, its optimizer, and the update."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from transformers import PreTrainedModel
from ttrl_kernels import PolicyLoss, chosen_backend

from ttrl.config import PolicySettings, Settings
from ttrl.policy.model import packed_hidden_states
from ttrl.policy.packing import pack, sequence_weights
from ttrl.types import PackedBatch, TrainSample, UpdateResult


def learning_rate(step: int, total: int, policy: PolicySettings) -> float:
    """The rate at ``step`` (from 1) of ``total``: linear warm-up, then a cosine."""
    rising = math.ceil(policy.warmup_share * total)
    if step <= rising:
        return policy.learning_rate * step / rising
    done = (step - 1 - rising) / max(1, total - rising)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return policy.learning_rate * (policy.final_lr_share + (1 - policy.final_lr_share) * cosine)


class LocalPolicy:
    """Holds the float32 weights and changes them by GRPO updates."""

    def __init__(self, model: PreTrainedModel, settings: Settings) -> None:
        """Take over ``model``, loaded by `ttrl.policy.model.load_policy_model`."""
        self.model = model.train()
        self.kernels = chosen_backend(model.device.type)
        """Which row backend computes the loss; they agree up to rounding."""
        self.settings = settings
        policy = settings.policy
        self.reference = (
            copy.deepcopy(model).eval().requires_grad_(False) if policy.kl_coef > 0 else None
        )
        if policy.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=policy.learning_rate,
            betas=policy.betas,
            weight_decay=policy.weight_decay,
        )

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All parameters, by their transformers names; tied ones once."""
        yield from self.model.named_parameters()

    @torch.no_grad()
    def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """Log-prob of each token of a completion, at the temperature of the rollouts."""
        sequence = TrainSample(
            "", tuple(prompt_ids), tuple(completion_ids), (0.0,) * len(completion_ids), 0.0
        )
        (batch,) = pack([sequence], [0.0], self.settings.policy.tokens_per_batch)
        batch = _to(batch, self.model.device)
        logp_T: torch.Tensor = self._output(self.model, batch).logp_T
        values: list[float] = logp_T[batch.targets_T >= 0].tolist()
        return values

    def update(self, samples: Sequence[TrainSample], rate: float) -> list[UpdateResult]:
        """Train on ``samples``, in order, ``sequences_per_update`` of them per optimizer step.

        Args:
            samples: the chosen completions of one rollout.
            rate: the learning rate of these steps.

        Returns:
            One result per optimizer step; steps without any gradient are not taken.

        Raises:
            FloatingPointError: if a loss or a gradient is not finite; the weights are then those
                before the step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        size = self.settings.policy.sequences_per_update
        steps = [samples[i : i + size] for i in range(0, len(samples), size)]
        results = [self._optimizer_step(step, rate) for step in steps]
        return [r for r in results if r is not None]

    def _optimizer_step(self, samples: Sequence[TrainSample], rate: float) -> UpdateResult | None:
        started = time.perf_counter()
        policy = self.settings.policy
        weights = sequence_weights(
            samples, policy.aggregation, self.settings.rollout.max_new_tokens
        )
        # A zero weight or, without a KL or entropy term, a zero advantage means a zero gradient,
        # exactly: such sequences count in the weights above, and cost nothing.
        every = policy.kl_coef > 0 or policy.entropy_coef > 0
        live = [i for i, s in enumerate(samples) if s.weight != 0 and (every or s.advantage != 0)]
        if not live:
            return None
        batches = pack(
            [samples[i] for i in live], [weights[i] for i in live], policy.tokens_per_batch
        )
        sums = _Sums()
        self.optimizer.zero_grad()
        for batch in batches:
            sums.add(batch, self._backward(batch))
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        self._refuse_non_finite(sums.loss, grad_norm)  # clipping would spread a NaN to all
        torch.nn.utils.clip_grads_with_norm_(parameters, policy.grad_clip, grad_norm)
        self.optimizer.step()
        return UpdateResult(
            loss=sums.loss,
            grad_norm=grad_norm.item(),
            learning_rate=rate,
            clip_fraction=sums.clipped / sums.tokens,
            kl=sums.kl / sums.tokens,
            entropy=sums.entropy / sums.tokens,
            sampler_kl=sums.sampler_kl / sums.tokens,
            sampler_max_gap=sums.sampler_max_gap,
            tokens=sums.tokens,
            sequences=len(live),
            skipped_sequences=len(samples) - len(live),
            seconds=time.perf_counter() - started,
        )

    def _backward(self, batch: PackedBatch) -> PolicyLoss:
        """Forward and backward of one micro-batch; gradients add up in the parameters."""
        policy = self.settings.policy
        batch = _to(batch, self.model.device)
        result: PolicyLoss = self._output(
            self.model,
            batch,
            advantages_T=batch.advantages_T,
            token_weights_T=batch.token_weights_T,
            old_logp_T=batch.old_logp_T,
            ref_logp_T=self._reference_logp(batch),
            clip_low=policy.clip_low,
            clip_high=policy.clip_high,
            dual_clip=policy.dual_clip,
            kl="k3",
            kl_coef=policy.kl_coef,
            entropy_coef=policy.entropy_coef,
        )
        result.loss.backward()
        return result

    @torch.no_grad()
    def _reference_logp(self, batch: PackedBatch) -> torch.Tensor | None:
        """The starting model's log-probs of the targets, for the KL term."""
        if self.reference is None:
            return None
        logp_T: torch.Tensor = self._output(self.reference, batch).logp_T
        return logp_T

    def _output(self, model: PreTrainedModel, batch: PackedBatch, **options: Any) -> Any:
        """What the model's `FusedLMHead` gives; matrix products in the settings' model.dtype."""
        dtype = getattr(torch, self.settings.model.dtype)
        with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            hidden_TH = packed_hidden_states(
                model, batch.token_ids_T, batch.positions_T, batch.cu_seqlens
            )
            return model.get_output_embeddings()(
                hidden_TH,
                batch.targets_T,
                temperature=self.settings.rollout.temperature,
                **options,
            )

    def _refuse_non_finite(self, loss: float, grad_norm: torch.Tensor) -> None:
        if math.isfinite(loss) and bool(torch.isfinite(grad_norm)):
            return
        bad = [
            name
            for name, p in self.model.named_parameters()
            if p.grad is not None and not bool(torch.isfinite(p.grad).all())
        ]
        self.optimizer.zero_grad()
        raise FloatingPointError(
            f"the update is not finite (loss {loss}, gradient norm {grad_norm.item()}, "
            f"gradients of {bad[:3] or 'no parameter'}); the weights are unchanged"
        )


def _to(batch: PackedBatch, device: torch.device) -> PackedBatch:
    return PackedBatch(**{f.name: getattr(batch, f.name).to(device) for f in fields(batch)})


class _Sums:
    """Sums over the trained tokens of an optimizer step."""

    def __init__(self) -> None:
        self.loss = self.clipped = self.kl = self.entropy = 0.0
        self.sampler_kl = self.sampler_max_gap = 0.0
        self.tokens = 0

    def add(self, batch: PackedBatch, result: PolicyLoss) -> None:
        """Add one micro-batch."""
        live_T = batch.token_weights_T != 0
        # k3 of trainer against sampler: never negative, 0 only where both agree.
        gap_T = (result.logp_T.cpu() - batch.old_logp_T)[live_T]
        self.loss += result.loss.item()
        self.clipped += result.clipped_T.cpu()[live_T].sum().item()
        if result.kl_T is not None:
            self.kl += result.kl_T.cpu()[live_T].sum().item()
        self.entropy += result.entropy_T.cpu()[live_T].sum().item()
        self.sampler_kl += (gap_T.exp() - 1 - gap_T).sum().item()
        self.sampler_max_gap = max(self.sampler_max_gap, gap_T.abs().max().item())
        self.tokens += int(live_T.sum())
