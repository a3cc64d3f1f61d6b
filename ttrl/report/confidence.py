"""How sure a model was of each token of an answer, computed from the likeliest ones in its place.

Recorded in the place of the likeliest tokens themselves: one number a token, where those are forty.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ttrl.types.top_logprobs import TopLogprobs

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

DIGITS = 4
"""Digits behind the point that are kept, so that what was written is what was computed."""


def token_confidences(logprobs_TK: NDArray[float64]) -> NDArray[float64]:
    """Compute the confidence of T tokens from the log-probs of the likeliest, as it is recorded."""
    rounded_T: NDArray[float64] = (-logprobs_TK.mean(axis=1)).round(DIGITS)
    return rounded_T.astype("float32").astype("float64")


@dataclass(frozen=True, slots=True)
class Confidence:
    """The confidence of an answer's tokens.

    With p the distribution that a token was sampled from, over its k likeliest tokens: the token's
    confidence (DeepConf, arXiv 2508.15260) is C = -(1/k) Σ log p_j, and its certainty is
    C - log k + log Σ p_j, which is KL(U‖p) of the k tokens alone, with their mass as 1. Where k is
    the whole vocabulary, that is the self-certainty of arXiv 2502.18581.

    Example: of two tokens with log-probs (log 1/2, log 1/2) and (log 1/4, log 3/4), the confidences
    are 0.6931 and 0.8370, and the certainty is the mean of 0 and 0.1438.
    """

    likeliest: int
    """How many tokens of each place are in it: k."""
    tokens: array[float]
    """The confidence of each token: float32, of `DIGITS` digits."""
    certainty: float
    """The mean certainty of the tokens."""

    @classmethod
    def of(cls, top: TopLogprobs) -> Confidence | None:
        """Compute an answer's confidence; None if some places know fewer tokens than others.

        Then the answer was sampled from the likeliest tokens of some mass, and what the others
        have of it is not known.
        """
        likeliest = top.counts[0] if top.counts else 0
        if not likeliest or any(count != likeliest for count in top.counts):
            return None
        import numpy as np  # reading runs does without it

        logprobs_TK = np.array(top.logprobs, dtype=np.float64).reshape(-1, likeliest)
        confidence_T = -logprobs_TK.mean(axis=1)
        mass_T = np.exp(logprobs_TK).sum(axis=1)
        certainty = float((confidence_T - math.log(likeliest) + np.log(mass_T)).mean())
        tokens = array("f", token_confidences(logprobs_TK).tolist())
        return cls(likeliest, tokens, round(certainty, DIGITS))

    def as_json(self) -> dict[str, Any]:
        """Return the confidences as JSON, as a file of answers holds them."""
        tokens = [round(value, DIGITS) for value in self.tokens]
        return {"likeliest": self.likeliest, "certainty": self.certainty, "tokens": tokens}

    @classmethod
    def of_json(cls, said: Mapping[str, Any], length: int) -> Confidence:
        """Read what `as_json` has written of an answer of so many tokens.

        Raises:
            ValueError, KeyError, TypeError: if it is not that.
        """
        likeliest = said["likeliest"]
        if not (length and type(likeliest) is int and likeliest > 0):
            raise ValueError(
                f"confidence of {length} tokens, over {likeliest!r} likeliest: expected one or "
                "more of both"
            )
        tokens = array("f", map(float, said["tokens"]))  # float32: what is too large is no more
        certainty = float(said["certainty"])
        if len(tokens) != length or not all(map(math.isfinite, (*tokens, certainty))):
            raise ValueError(f"confidence: expected {length} finite numbers, one for each token")
        return cls(likeliest, tokens, certainty)
