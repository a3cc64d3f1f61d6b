"""Random numbers that need no stored state.

Every random decision has its own stream, derived from what it is (run seed, purpose, step,
question, sample) and from nothing else. So a sample does not depend on which others are decoded
beside it, nor on what was drawn before, and a resumed run has no generator state to restore.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np  # the command line starts without it


def generator(*stream: int | str) -> np.random.Generator:
    """A Philox generator (counter-based) that depends on ``stream`` alone."""
    import numpy as np

    digest = hashlib.blake2b(repr(stream).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8")))
