"""How tokens are drawn from logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import pad

from ttrl.settings import Settings
from ttrl.types import UserError


@dataclass(frozen=True, slots=True)
class ConfidenceFloor:
    """The least confidence that answers go on with, as DeepConf stops them (arXiv 2508.15260).

    Example: ``ConfidenceFloor(2048, {"q1": 11.5})``: an answer to q1 is broken off with the first
    token that brings the mean confidence of the last 2,048 below 11.5.
    """

    window: int
    """Tokens of a group; see `ttrl.report.confidence` for what the confidence of a token is."""
    least: Mapping[str, float]
    """Question id -> the least mean of a group."""


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
    policy: int = 0
    """Which of the run's policies answers: the pool brings the engine to its weights."""
    floor: ConfidenceFloor | None = None
    """Break off answers that are less confident; needs ``top_logprobs``. None: none is."""

    def __post_init__(self) -> None:
        """Raise a ValueError for a floor without what confidence is computed from."""
        if self.floor is not None and not self.noted:
            raise ValueError("floor needs top_logprobs: the confidence of a token is that of them")

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


def draw(
    logp_BV: torch.Tensor, uniform_R: torch.Tensor, from_R: torch.Tensor | None = None
) -> torch.Tensor:
    """Draw R token ids by inversion: the first whose cumulative probability exceeds u.

    The sums are in float64, of blocks of tokens, and then of the tokens of one block.

    Args:
        logp_BV: log-probs of B distributions.
        uniform_R: float64, from 0 and below 1.
        from_R: for each draw, the distribution it is from; R = B in order by default.

    Raises:
        UserError: if there is no distribution, because the model's logits are not finite.
    """
    rows, tokens = logp_BV.shape
    if from_R is None:
        from_R = torch.arange(rows, device=logp_BV.device)
    width = math.isqrt(tokens - 1) + 1  # few blocks of few tokens
    blocks = -(-tokens // width)
    probs_BV = logp_BV.exp()
    if blocks * width > tokens:
        probs_BV = pad(probs_BV, (0, blocks * width - tokens))
    probs_BCW = probs_BV.view(rows, blocks, width)
    mass_BC = probs_BCW.sum(-1, dtype=torch.float64).cumsum(-1)
    if not bool(torch.isfinite(mass_BC[:, -1]).all()):
        raise UserError(
            "the model's log-probs are not finite: it has diverged, or its weights are broken; "
            "lower optimizer.learning_rate, and start again from an earlier state"
        )
    # The sum is 1 only up to rounding: scaling u to it keeps u below the sum, so the token found
    # is never past the end and never one of probability 0.
    mass_RC = mass_BC[from_R]
    target_R1 = (uniform_R * mass_RC[:, -1]).unsqueeze(1)
    block_R1 = torch.searchsorted(mass_RC, target_R1, right=True)
    before_R1 = pad(mass_RC, (1, 0)).gather(1, block_R1)
    cdf_RW = probs_BCW[from_R, block_R1.squeeze(1)].double().cumsum(-1)
    # A block's own sum may be rounded in another way: below it, the same holds of its tokens.
    within_R1 = (target_R1 - before_R1).minimum(cdf_RW[:, -1:].nextafter(cdf_RW.new_zeros(())))
    place_R1 = torch.searchsorted(cdf_RW, within_R1, right=True)
    return (block_R1 * width + place_R1).squeeze(1)
