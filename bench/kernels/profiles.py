"""Which cases are run where."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from contenders import CONTENDERS, Shape

EVERY = tuple(CONTENDERS)
PAIR = ("ttrl_kernels", "plain PyTorch")
CRITERION = (*PAIR, "plain PyTorch, with entropy")


@dataclass(frozen=True)
class Run:
    """One table: a shape, forward or forward and backward, and who takes part."""

    shape: Shape
    backward: bool
    contenders: tuple[str, ...] = EVERY
    rounds: int = 7
    part: str = "speed"


def profile(name: str) -> list[Run]:
    """``tiny`` checks that everything runs; ``cpu``, ``cuda`` and ``criterion`` measure."""
    bf16, fp32 = torch.bfloat16, torch.float32
    if name == "tiny":
        shapes = [Shape(64, 32, 515, fp32), Shape(63, 20, 301, bf16, sequences=3)]
        return _runs(shapes, rounds=1, sizes=[(16, 100)], sweep=shapes[0])
    if name == "criterion":  # the loss alone, with more rounds
        shapes = [Shape(1024, 896, 65536, dtype) for dtype in (fp32, bf16)]
        return [Run(shape, True, CRITERION, rounds=11) for shape in shapes]
    if name == "cpu":
        shapes = [Shape(1024, 896, 65536, dtype) for dtype in (fp32, bf16)]
        ugly = Shape(519, 333, 50021, bf16, sequences=3)
        sizes = [(256, 16384), (512, 32768), (1024, 65536), (2048, 131072)]
        return _runs([*shapes, ugly], rounds=3, sizes=sizes, sweep=Shape(1024, 256, 32768, fp32))
    heads = [(3584, 152064), (1536, 151936), (4096, 128256)]
    shapes = [Shape(16384, h, v, bf16, sequences=16) for h, v in heads]
    ugly = Shape(4095, 1001, 100003, bf16, sequences=5)
    sizes = [(4096, 32768), (8192, 65536), (16384, 131072), (32768, 262144)]
    sweep = Shape(16384, 1536, 131072, bf16, sequences=16)
    return _runs([*shapes, ugly], rounds=7, sizes=sizes, sweep=sweep)


def _runs(
    shapes: list[Shape], rounds: int, sizes: list[tuple[int, int]], sweep: Shape
) -> list[Run]:
    speed = [Run(s, backward, rounds=rounds) for s in shapes for backward in (False, True)]
    sparse = [
        Run(replace(shapes[-2], zeros=zeros), True, PAIR, rounds, "zero-gradient rows")
        for zeros in (0.5, 0.9)
    ]
    tokens = [replace(sweep, tokens=tokens) for tokens, _ in sizes]
    vocabularies = [replace(sweep, vocabulary=vocabulary) for _, vocabulary in sizes]
    growth = [Run(s, True, PAIR, 3, "growth") for s in (*tokens, *vocabularies)]
    return [*speed, *sparse, *growth]
