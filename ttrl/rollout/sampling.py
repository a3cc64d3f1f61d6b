"""How tokens are drawn from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from ttrl.settings import Settings
from ttrl.types import UserError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Parameters of sampling for one batch of questions."""

    n: int
    """Completions per question."""
    temperature: float
    """Divisor of the logits; 0: the most probable token, always."""
    max_new_tokens: int
    """Tokens after which a completion ends at the latest."""
    top_p: float = 1.0
    """Only the most probable tokens that together reach this mass; 1 keeps all."""
    top_k: int = 0
    """Only so many of the most probable tokens; 0 keeps all."""
    min_p: float = 0.0
    """Only tokens with at least this share of the most probable one's probability."""
    top_logprobs: int = 0
    """Per token, how many of the likeliest ones to note, with their log-probs."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion: with the token that completes one of them in its text."""
    stream: tuple[int | str, ...] = ()
    """What the random numbers are derived from, before question id and sample index."""
    first: int = 0
    """Index of the first sample: the samples from 16 on are the same whoever samples the others."""

    @property
    def noted(self) -> int:
        """How many of the likeliest tokens an engine notes: with ``top_k`` all that are left."""
        return max(self.top_logprobs, self.top_k)


def voting(settings: Settings, *stream: int | str) -> SamplingParams:
    """Return how votes are sampled, with random numbers of their own for each ``stream``."""
    rollout = settings.rollout
    return SamplingParams(
        n=rollout.votes,
        temperature=rollout.temperature,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        min_p=rollout.min_p,
        stop=rollout.stop,
        max_new_tokens=rollout.max_new_tokens,
        stream=(settings.seed, *stream),
    )


def greedy(settings: Settings, step: int) -> SamplingParams:
    """Return how the most probable answer is sampled, token by token, that ReMax compares with.

    The smallest ``top_p`` keeps one token, for every engine alike.
    """
    votes = voting(settings, "rollout", step, "greedy")
    return replace(votes, n=1, top_k=0, top_p=1e-6, min_p=0.0)


def verifying(settings: Settings) -> SamplingParams:
    """Return how the few short answers are sampled that engine and policy are compared by."""
    votes = voting(settings, "verify")
    return replace(votes, n=2, max_new_tokens=min(32, votes.max_new_tokens))


def sampling_logprobs(
    logits_BV: torch.Tensor, temperature: float, top_p: float, top_k: int = 0, min_p: float = 0.0
) -> torch.Tensor:
    """Compute log-probabilities [B, V], float32, of the distribution that is sampled from.

    In vLLM's order: temperature, ``min_p``, ``top_k``, ``top_p``, each of what the one before has
    left. Among equally probable tokens the lower ids stay.
    """
    if temperature == 0.0:  # the first of the largest logits; what is not finite stays so
        largest_B1, place_B1 = logits_BV.float().max(dim=-1, keepdim=True)
        none_BV = torch.full_like(logits_BV, -torch.inf, dtype=torch.float32)
        return none_BV.scatter_(-1, place_B1, largest_B1 - largest_B1)
    logp_BV = torch.log_softmax(logits_BV.float() / temperature, dim=-1)
    if min_p > 0:
        least_B1 = logp_BV.amax(-1, keepdim=True) + math.log(min_p)
        logp_BV = torch.log_softmax(logp_BV.masked_fill(logp_BV < least_B1, -torch.inf), dim=-1)
    if top_p >= 1.0 and top_k == 0:
        return logp_BV
    sorted_BV, order_BV = logp_BV.sort(dim=-1, descending=True, stable=True)
    if top_k > 0:
        sorted_BV[:, top_k:] = -torch.inf
        sorted_BV = torch.log_softmax(sorted_BV, dim=-1)
    outside_BV = sorted_BV == -torch.inf
    if top_p < 1.0:
        probs_BV = sorted_BV.exp()
        # A token stays while the mass before it is below top_p: the first one always does.
        outside_BV |= probs_BV.cumsum(dim=-1) - probs_BV >= top_p
    dropped_BV = torch.zeros_like(outside_BV).scatter_(-1, order_BV, outside_BV)
    return torch.log_softmax(logp_BV.masked_fill(dropped_BV, -torch.inf), dim=-1)


def draw(logp_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """Draw one token id per row by inversion: the first whose cumulative probability exceeds u.

    Raises:
        UserError: if a row holds no distribution, because the model's logits are not finite.
    """
    cdf_BV = logp_BV.double().exp().cumsum(dim=-1)
    if not bool(torch.isfinite(cdf_BV[:, -1]).all()):
        raise UserError(
            "the model's log-probs are not finite: it has diverged, or its weights are broken; "
            "lower optimizer.learning_rate, and start again from an earlier state"
        )
    # The sum is 1 only up to rounding: scaling u to it keeps u below the sum, so the token found
    # is never past the end and never one of probability 0.
    target_B1 = (uniform_B * cdf_BV[:, -1]).unsqueeze(1)
    return torch.searchsorted(cdf_BV, target_B1, right=True).squeeze(1)
