"""Reward for going another way to the same answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr

from ttrl.rewards.estimators.base import Estimator, register
from ttrl.settings.plugins import errors_as_user_error, load_plugin
from ttrl.types import Estimate, UserError, VotedGroup

if TYPE_CHECKING:
    import numpy as np  # the command line starts without it
    import numpy.typing as npt

GRAM = 8
"""Bytes in an n-gram: a word or two."""
TEXT_BYTES = 16384
"""Bytes of a text that are compared, at most: this bounds time and memory."""


@register("evol")
class Evol(Estimator):
    """EVOL-RL (arXiv 2509.15194): the majority selects, novelty varies.

    Agreeing with the label earns 0.5 + 0.5 v, disagreeing -1 + 0.5 v, abstaining -1. The novelty

        u_i = 1 - (0.5 · mean similarity to its own band + 0.5 · max similarity to all voters)

    of a voter's text, itself left out, becomes v by min-max over its band (agreeing, or not). If
    all of a band are equally novel, v is 0.5; if it has one member, 1. The paper compares
    embeddings; by default we compare 8-byte substrings (`ngram_similarity`), which needs no
    second model. Its other parts are settings: ``loss.clip_high``, ``loss.entropy_coef``.
    """

    similarity: str | None = None
    """FILE.py:FUNCTION from a list of n texts to their similarities in [0, 1], n x n; called by
    several threads. None: `ngram_similarity`."""

    _compare: Callable[[list[str]], Any] = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Load the user's function: an error in it is to come before a model is loaded."""
        self._compare = ngram_similarity
        if self.similarity is not None:
            self._compare = load_plugin(self.similarity, "reward.options.similarity")

    def estimate(self, voted: VotedGroup) -> Estimate:
        """Compute r_i in [0.5, 1] or [-1, -0.5]: see the class."""
        answers_G = voted.vote.answers_G
        voters = [i for i, answer in enumerate(answers_G) if answer is not None]
        agrees = [voted.agrees_G[i] for i in voters]
        texts = [voted.group.completions[i].text for i in voters]
        novelty = _novelty(self._similarities(texts), agrees)
        scaled = _within_bands(novelty, agrees)
        rewards_G = [-1.0] * len(answers_G)
        for i, in_majority, v in zip(voters, agrees, scaled, strict=True):
            rewards_G[i] = (0.5 if in_majority else -1.0) + 0.5 * v
        return Estimate(
            vote=voted.vote,
            rewards_G=tuple(rewards_G),
            label=voted.label,
            confidence=voted.vote.majority_ratio,
            metrics={"novelty": math.fsum(novelty) / len(novelty)} if novelty else {},
        )

    def _similarities(self, texts: list[str]) -> list[list[float]]:
        import numpy as np

        if len(texts) < 2:
            return [[1.0] for _ in texts]
        with errors_as_user_error(str(self.similarity), "reward.options.similarity"):
            compared = self._compare(texts)
        try:
            found = np.asarray(compared, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"reward.options.similarity = {self.similarity!r}: {error}") from error
        if found.shape != (len(texts),) * 2 or not ((found >= 0) & (found <= 1)).all():
            raise UserError(
                f"reward.options.similarity = {self.similarity!r}: expected {len(texts)} x "
                f"{len(texts)} numbers from 0 to 1, got an array of shape {found.shape} with "
                f"values from {found.min(initial=math.inf)} to {found.max(initial=-math.inf)}"
            )
        rows: list[list[float]] = found.tolist()
        return rows


def ngram_similarity(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """Compute the Jaccard similarity of the sets of substrings: shared / all.

    Args:
        texts: at least one; substrings are of 8 bytes, of the first 16384 bytes.

    Returns:
        One row and one column per text.
    """
    import numpy as np

    sets = [np.unique(_grams(text)) for text in texts]
    sizes = np.array([len(grams) for grams in sets])
    owners = np.repeat(np.arange(len(texts)), sizes)
    _, columns, frequency = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
    common = frequency[columns] > 1  # the others are in no intersection, and most of memory
    _, columns = np.unique(columns[common], return_inverse=True)
    holds = np.zeros((len(texts), columns.max(initial=0) + 1), dtype=np.float32)
    holds[owners[common], columns] = 1
    shared = (holds @ holds.T).astype(np.float64)  # counts below 2^24: exact in any order
    np.fill_diagonal(shared, sizes)
    similar: npt.NDArray[np.float64] = shared / (sizes[:, None] + sizes[None, :] - shared)
    return similar


def _grams(text: str) -> npt.NDArray[np.uint64]:
    """Return the substrings as numbers; a shorter text is one substring."""
    import numpy as np

    data = text.encode("utf-8", "backslashreplace")[:TEXT_BYTES].ljust(GRAM, b"\0")
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), GRAM)
    return np.ascontiguousarray(windows).view(np.uint64).ravel()


def _novelty(similar: Sequence[Sequence[float]], band: Sequence[bool]) -> list[float]:
    """Compute u of each text, by `math.fsum`, so that the order of the texts leaves no trace."""
    found = []
    for i, row in enumerate(similar):
        others = [s for j, s in enumerate(row) if j != i]
        own = [s for j, s in enumerate(row) if j != i and band[j] == band[i]] or others
        mean = math.fsum(own) / len(own) if own else 0.0
        found.append(1 - (0.5 * mean + 0.5 * max(others, default=0.0)))
    return found


def _within_bands(novelty: Sequence[float], band: Sequence[bool]) -> list[float]:
    """Scale each novelty from 0 to 1 within its band."""
    scaled = []
    for u, mine in zip(novelty, band, strict=True):
        members = [v for v, theirs in zip(novelty, band, strict=True) if mine == theirs]
        low, high = min(members), max(members)
        if len(members) == 1:
            scaled.append(1.0)
        else:
            scaled.append((u - low) / (high - low) if high > low else 0.5)
    return scaled
