"""The policy update written down once more, slowly, for tests to compare with."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from statistics import fmean

import torch
from step_twin import Rows, all_within_bounds, covariances, kept_by_entropy, penalized
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

from ttrl.settings import LossSettings, Settings
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
        self.entropy_coef, self.was_low = settings.loss.entropy_coef, False

    def update(self, samples: list[TrainSample], rate: float) -> list[dict[str, float]]:
        size = self.settings.policy.sequences_per_update
        self.optimizer.param_groups[0]["lr"] = rate
        steps = [samples[i : i + size] for i in range(0, len(samples), size)]
        decided = [self.decide(step) for step in steps]  # before the first of them is taken
        return [self.step(*step) for step in zip(steps, decided, strict=True)]

    @torch.no_grad()
    def decide(self, samples: list[TrainSample]) -> tuple[Rows, Rows]:
        """What each token's policy term is multiplied by, and the penalty of its ratio."""
        loss, logprobs, entropies = self.settings.loss, [], []
        for sample in samples:
            logp_nV = all_logprobs(self.model, prompt_of(sample), answer_of(sample), TEMPERATURE)
            logprobs.append(at(logp_nV, answer_of(sample)).tolist())
            entropies.append(entropy(logp_nV).tolist())
        factors = kept_by_entropy(entropies, loss.entropy_mask)
        penalties = [[0.0] * len(row) for row in factors]
        advantages = [list(s.advantages) for s in samples]
        found = covariances(advantages, logprobs)
        if loss.covariance == "kl":
            penalties = penalized(found, loss)
        if loss.covariance == "clip":
            gaps = [
                [x - y for x, y in zip(row, s.logprobs, strict=True)]
                for row, s in zip(logprobs, samples, strict=True)
            ]
            others = all_within_bounds(found, advantages, gaps, loss)
            factors = [
                [f * g for f, g in zip(*rows, strict=True)]
                for rows in zip(factors, others, strict=True)
            ]
        return factors, penalties

    def step(self, samples: list[TrainSample], decided: tuple[Rows, Rows]) -> dict[str, float]:
        figures: dict[str, list[float]] = defaultdict(list)
        self.optimizer.zero_grad()
        loss = sum(
            self.sequence_loss(sample, samples, torch.tensor(rows, dtype=torch.float64), figures)
            for sample, rows in zip(samples, zip(*decided, strict=True), strict=True)
        )
        loss.backward()
        grads = [p.grad for p in self.model.parameters()]
        norm = math.sqrt(sum(g.square().sum().item() for g in grads))
        for g in grads:
            g *= min(1, self.settings.optimizer.grad_clip / (norm + 1e-6))
        self.optimizer.step()
        means = {name: fmean(values) for name, values in figures.items() if name != "gap"}
        coefficient = self.bonus()
        self.after_step(means["entropy"])
        return {
            **means,
            "loss": loss.item(),
            "grad_norm": norm,
            "entropy_coef": coefficient,
            "sampler_max_gap": max(figures["gap"]),
            "tokens": len(figures["gap"]),
        }

    def bonus(self) -> float:
        adapts = self.settings.loss.entropy_target is not None
        return self.entropy_coef if self.was_low or not adapts else 0.0

    def after_step(self, mean_entropy: float) -> None:
        loss = self.settings.loss
        if loss.entropy_target is None:
            return
        self.was_low = mean_entropy <= loss.entropy_target
        self.entropy_coef += loss.entropy_coef_step * (1 if self.was_low else -1)
        self.entropy_coef = max(0.0, min(loss.entropy_coef_max, self.entropy_coef))

    def sequence_loss(
        self,
        sample: TrainSample,
        samples: list[TrainSample],
        decided_2n: torch.Tensor,
        figures: dict[str, list[float]],
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
        factor_n, penalty_n = decided_2n
        advantage_n = sample.advantages[0] * factor_n
        log_ratio_n = logp_n - old_n

        objective_n, clipped_n = policy_term(logp_n, old_n, advantage_n, loss)
        if loss.off_policy_mask is not None and -log_ratio_n.mean() > loss.off_policy_mask:
            objective_n = objective_n * (advantage_n >= 0)
            clipped_n = clipped_n | (advantage_n < 0)
        entropy_n = entropy(logp_nV)
        with torch.no_grad():
            ref_n = at(all_logprobs(self.reference, *ids, TEMPERATURE), answer_of(sample))
        kl_n = kl_term(logp_n, ref_n, loss.kl_estimator)
        if loss.kl_bias_correction:
            kl_n = kl_n * log_ratio_n.exp()

        if sample.advantages[0] != 0 or loss.kl_coef or self.bonus():  # what UpdateResult covers
            gap_n = log_ratio_n.detach()
            figures["clip_fraction"] += clipped_n.double().tolist()
            figures["kl"] += (kl_n if loss.kl_coef else torch.zeros(n)).tolist()
            figures["entropy"] += entropy_n.tolist()
            figures["sampler_kl"] += (gap_n.exp() - gap_n - 1).tolist()
            figures["gap"] += gap_n.abs().tolist()
        loss_n = -objective_n + penalty_n * log_ratio_n.abs()
        loss_n = loss_n + loss.kl_coef * kl_n - self.bonus() * entropy_n
        return share * sample.weight * loss_n.sum()


def entropy(logp_nV: torch.Tensor) -> torch.Tensor:
    """Of each token's distribution."""
    return -(logp_nV.exp() * logp_nV).sum(1)


def kl_term(logp_n: torch.Tensor, ref_n: torch.Tensor, kind: str) -> torch.Tensor:
    """The estimate of the KL; with a + its value, and the gradient of k2."""
    value_n = {
        "k1": logp_n - ref_n,
        "k2": (logp_n - ref_n).square() / 2,
        "k3": (ref_n - logp_n).exp() - (ref_n - logp_n) - 1,
        "abs": (logp_n - ref_n).abs(),
    }[kind.removesuffix("+")]
    if kind.endswith("+"):
        k2_n = (logp_n - ref_n).square() / 2
        return value_n.detach() + k2_n - k2_n.detach()
    return value_n


def policy_term(
    logp_n: torch.Tensor, old_n: torch.Tensor, advantage_n: torch.Tensor, loss: LossSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is to be maximized at each token of one sequence, and where a clip decided."""
    log_ratio_n = logp_n - old_n
    if loss.policy == "gmpo":
        up_n, down_n = advantage_n > 0, advantage_n < 0
        above_n, below_n = (
            up_n & (log_ratio_n > loss.clip_high),
            down_n & (log_ratio_n < -loss.clip_low),
        )
        bounded_n = torch.where(above_n, torch.tensor(loss.clip_high).double(), log_ratio_n)
        bounded_n = torch.where(below_n, torch.tensor(-loss.clip_low).double(), bounded_n)
        bounded_n = torch.where(advantage_n == 0, torch.tensor(0.0).double(), bounded_n)
        return bounded_n.mean().exp() * advantage_n, above_n | below_n
    if loss.policy in ("dppo_tv", "dppo_kl"):
        p_n, q_n = logp_n.detach().exp(), old_n.exp()
        divergence_n = (p_n - q_n).abs()
        if loss.policy == "dppo_kl":
            divergence_n = q_n * (q_n / p_n).log() + (1 - q_n) * ((1 - q_n) / (1 - p_n)).log()
        bound_n = torch.where(advantage_n > 0, loss.clip_high, loss.clip_low)
        dropped_n = (divergence_n > bound_n) & ((p_n - q_n) * advantage_n > 0)
        ratio_n = log_ratio_n.detach().exp().clamp(max=20)
        return ratio_n * advantage_n * logp_n * ~dropped_n, dropped_n
    if loss.ratio_level == "sequence":
        log_ratio_n = log_ratio_n.mean().expand(len(log_ratio_n))
    ratio_n = log_ratio_n.exp()
    bounded_n = ratio_n.clamp(1 - loss.clip_low, 1 + loss.clip_high)
    if loss.policy == "ppo_clip":
        objective_n = torch.minimum(ratio_n * advantage_n, bounded_n * advantage_n)
        if loss.dual_clip is not None:
            floor_n = torch.maximum(objective_n, loss.dual_clip * advantage_n)
            objective_n = torch.where(advantage_n < 0, floor_n, objective_n)
        return objective_n, objective_n != ratio_n * advantage_n
    if loss.policy == "cispo":
        return bounded_n.detach() * logp_n * advantage_n, bounded_n != ratio_n
    return ratio_n * advantage_n, torch.zeros(len(ratio_n), dtype=torch.bool)
