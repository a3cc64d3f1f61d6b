"""The likeliest tokens of each place, as vLLM says them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ttrl.rollout.sampling import SamplingParams
from ttrl.types.top_logprobs import TopLogprobs

TIES = 16
"""Further ones that are asked for with ``top_k``: of tokens that are as likely as the last one to
stay, vLLM without Triton drops none."""
WHOLE = 0.999
"""The mass of all tokens that could have been drawn is above this, whatever rounding does."""


def likeliest(found: Any, params: SamplingParams) -> TopLogprobs:
    """Return the likeliest tokens of each place, behind the sampled one that comes first.

    Raises:
        RuntimeError: if they are not all that ``top_k`` has left.
    """
    spans = [
        slice(start + 1, end)
        for start, end in zip(found.start_indices, found.end_indices, strict=True)
    ]
    top = TopLogprobs.of(
        ((found.token_ids[span], found.logprobs[span]) for span in spans), whole=params.top_k > 0
    )
    if top.whole:
        starts = np.cumsum([0, *top.counts[:-1]])
        least = np.add.reduceat(np.exp(np.array(top.logprobs)), starts).min()
        if not least > WHOLE:
            raise RuntimeError(
                f"vLLM's {max(top.counts)} likeliest tokens have {least:.4f} of the mass, with "
                f"top_k = {params.top_k}: more than {TIES} are as likely as the last of them"
            )
    return top
