"""The policy update written down once more, slowly, for tests to compare with."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from statistics import fmean

import torch
from tiny_models import (
    MAX_NEW_TOKENS,
    TEMPERATURE,
    all_logprobs,
    answer_of,
    at,
    plain_twin,
    prompt_of,
)
from transformers import PreTrainedModel

from ttrl.settings import Settings
from ttrl.types import TrainSample


class Twin:
    """GRPO sequence by sequence with all logits, in float64, and torch's AdamW."""

    def __init__(self, model: PreTrainedModel, settings: Settings) -> None:
        self.settings, optimizer = settings, settings.optimizer
        self.model = plain_twin(model)
        self.reference = copy.deepcopy(self.model)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), betas=optimizer.betas, weight_decay=optimizer.weight_decay
        )

    def update(self, samples: list[TrainSample], rate: float) -> list[dict[str, float]]:
        size = self.settings.policy.sequences_per_update
        self.optimizer.param_groups[0]["lr"] = rate
        return [self.step(samples[i : i + size]) for i in range(0, len(samples), size)]

    def step(self, samples: list[TrainSample]) -> dict[str, float]:
        figures: dict[str, list[float]] = defaultdict(list)
        self.optimizer.zero_grad()
        loss = sum(self.sequence_loss(sample, samples, figures) for sample in samples)
        loss.backward()
        grads = [p.grad for p in self.model.parameters()]
        norm = math.sqrt(sum(g.square().sum().item() for g in grads))
        for g in grads:
            g *= min(1, self.settings.optimizer.grad_clip / (norm + 1e-6))
        self.optimizer.step()
        means = {name: fmean(values) for name, values in figures.items() if name != "gap"}
        return {
            **means,
            "loss": loss.item(),
            "grad_norm": norm,
            "sampler_max_gap": max(figures["gap"]),
            "tokens": len(figures["gap"]),
        }

    def sequence_loss(
        self, sample: TrainSample, samples: list[TrainSample], figures: dict[str, list[float]]
    ) -> torch.Tensor:
        loss, n = self.settings.loss, len(answer_of(sample))
        everything = sum(len(answer_of(s)) for s in samples)
        share = {
            "token_mean": 1 / everything,
            "sequence_mean": 1 / (len(samples) * n),
            "constant": 1 / (len(samples) * MAX_NEW_TOKENS),
        }[loss.aggregation]
        ids = (prompt_of(sample), answer_of(sample))
        logp_nV = all_logprobs(self.model, *ids, TEMPERATURE)
        logp_n = at(logp_nV, answer_of(sample))
        old_n = torch.tensor(sample.logprobs, dtype=torch.float64)
        advantage = sample.advantages[0]

        log_ratio_n = logp_n - old_n
        if loss.ratio_level == "sequence":
            log_ratio_n = log_ratio_n.mean().expand(n)
        ratio_n = log_ratio_n.exp()
        bounded_n = ratio_n.clamp(1 - loss.clip_low, 1 + loss.clip_high)
        if loss.policy == "ppo_clip":
            objective_n = torch.minimum(ratio_n * advantage, bounded_n * advantage)
            if loss.dual_clip is not None and advantage < 0:
                objective_n = objective_n.clamp(min=loss.dual_clip * advantage)
            clipped_n = objective_n != ratio_n * advantage
        elif loss.policy == "cispo":
            objective_n = bounded_n.detach() * logp_n * advantage
            clipped_n = bounded_n != ratio_n
        else:
            objective_n = ratio_n * advantage
            clipped_n = torch.zeros(n)
        entropy_n = -(logp_nV.exp() * logp_nV).sum(1)
        with torch.no_grad():
            ref_n = at(all_logprobs(self.reference, *ids, TEMPERATURE), answer_of(sample))
        kl_n = {
            "k1": logp_n - ref_n,
            "k2": (logp_n - ref_n).square() / 2,
            "k3": (ref_n - logp_n).exp() - (ref_n - logp_n) - 1,
        }[loss.kl_estimator]

        if advantage != 0 or loss.kl_coef or loss.entropy_coef:  # what UpdateResult covers
            gap_n = (logp_n - old_n).detach()
            figures["clip_fraction"] += clipped_n.double().tolist()
            figures["kl"] += (kl_n if loss.kl_coef else torch.zeros(n)).tolist()
            figures["entropy"] += entropy_n.tolist()
            figures["sampler_kl"] += (gap_n.exp() - gap_n - 1).tolist()
            figures["gap"] += gap_n.abs().tolist()
        loss_n = -objective_n + loss.kl_coef * kl_n - loss.entropy_coef * entropy_n
        return share * sample.weight * loss_n.sum()
