r"""A paraphrase of the embedded task's questions: the same sum, turned around.

    ttrl train tiny-arithmetic --set reward.labels=harmony \
        --set harmony.paraphrase=bench/paraphrases/turned_around.py:turn

The embedded model can say nothing but sums, so it cannot rewrite its question; it adds 85 + 47 by
other columns than 47 + 85, and slips elsewhere.
"""

from __future__ import annotations

import re

SUM = re.compile(r"(\d+) \+ (\d+)")


def turn(text: str) -> str:
    """Write ``What is 85 + 47?`` for ``What is 47 + 85?``."""
    return SUM.sub(r"\2 + \1", text)
