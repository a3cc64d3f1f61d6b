"""Random numbers that need no stored state.

Every random decision has its own stream, derived from what it is (run seed, purpose, step,
question, sample) and from nothing else. So a sample does not depend on which others are decoded
beside it, nor on what was drawn before, and a resumed run has no state of ours to restore.

A user's own code may still draw from the global generators of torch, NumPy and Python. They start
from the run's seed, and their states are part of a checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np  # the command line starts without them
    import torch


def generator(*stream: int | str) -> np.random.Generator:
    """Make a Philox generator (counter-based) that depends on ``stream`` alone."""
    import numpy as np

    return np.random.Generator(np.random.Philox(key=_key(stream)))


def uniforms(streams: Sequence[tuple[int | str, ...]], count: int) -> np.ndarray:
    """Draw what `generator` of each stream gives as its first ``count`` uniforms: [streams, count].

    One generator, set to one key after the other, makes them several times faster.
    """
    import numpy as np

    bits = np.random.Philox(key=0)
    fresh: Any = bits.state
    drawn = np.empty((len(streams), count))
    for stream, row in zip(streams, drawn, strict=True):
        fresh["state"]["key"] = _key(stream)
        bits.state = fresh
        np.random.Generator(bits).random(out=row)
    return drawn


def seed_globals(seed: int) -> None:
    """Start the global generators of torch (all devices), NumPy and Python from ``seed``."""
    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def make_repeatable(threads: int | None, seed: int) -> None:
    """Let the same settings on the same machine give the same bits.

    Sums in another order differ in the last bit, and one bit can change a sampled token; so the
    number of threads is a setting, and operations without a fixed order are refused by torch. On
    GPUs, where sampling has no others, it warns, except in updates.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    on_gpu = torch.cuda.is_available()
    if on_gpu:  # read when cuBLAS starts; without it torch refuses every matrix product
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # What it would fill is written over anyway: a whole layer, each time that one is gathered.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=on_gpu)
    seed_globals(seed)


@contextmanager
def strictly_deterministic() -> Iterator[None]:
    """Refuse, where torch's deterministic mode only warns, what has no fixed order.

    On a GPU sampling needs such operations, so a run's mode warns there (`make_repeatable`). In an
    update it must refuse: where it only warns, the backward pass of PyTorch's own attention adds
    up in any order instead of taking its deterministic kernel.
    """
    import torch

    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error" if mode else "default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)


def globals_state() -> dict[str, Any]:
    """Return the global generators' states, as JSON; of the GPUs, the current one's."""
    import numpy as np
    import torch

    numpy_state: Any = np.random.get_state(legacy=False)
    key = numpy_state["state"]["key"].tolist()
    version, internal, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": None if cuda is None else cuda.numpy().tobytes().hex(),
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": key}},
        "python": [version, list(internal), gauss],
    }


def restore_globals(state: dict[str, Any]) -> None:
    """Put back what `globals_state` gave; without a GPU, there or here, not that of the GPU."""
    import numpy as np
    import torch

    torch.set_rng_state(_bytes(state["torch"]))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state["cuda"]))
    numpy_state = state["numpy"]
    key = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy_state, "state": {**numpy_state["state"], "key": key}})
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def _key(stream: tuple[int | str, ...]) -> np.ndarray:
    import numpy as np

    digest = hashlib.blake2b(repr(stream).encode(), digest_size=16).digest()
    return np.frombuffer(digest, dtype="<u8")


def _bytes(text: str) -> torch.Tensor:
    import torch

    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
