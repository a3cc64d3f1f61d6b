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


HEADS = ((3584, 152064), (1536, 151936), (4096, 128256))
"""Hidden size and vocabulary of Qwen2.5-7B, Qwen2.5-1.5B and Llama-3.1-8B."""
NAMES = ("tiny", "criterion", "cpu", "gpu-check", "gpu", "gpu-growth")


def profile(name: str) -> list[Run]:
    """``tiny`` checks that everything runs; the others measure, most telling first."""
    bf16, fp32 = torch.bfloat16, torch.float32
    if name == "tiny":
        shapes = [Shape(64, 32, 515, fp32), Shape(63, 20, 301, bf16, sequences=3)]
        sizes = [(16, 100)]
        return [*_speed(shapes, 1), *_sparse(shapes[0], 1), *_growth(shapes[0], sizes)]
    if name == "criterion":  # the loss alone, with more rounds
        shapes = [Shape(1024, 896, 65536, dtype) for dtype in (fp32, bf16)]
        return [Run(shape, True, CRITERION, rounds=11) for shape in shapes]
    if name == "cpu":
        shapes = [Shape(1024, 896, 65536, dtype) for dtype in (fp32, bf16)]
        ugly = Shape(519, 333, 50021, bf16, sequences=3)
        sizes = [(256, 16384), (512, 32768), (1024, 65536), (2048, 131072)]
        sweep = Shape(1024, 256, 32768, fp32)
        return [*_speed([*shapes, ugly], 3), *_sparse(shapes[1], 3), *_growth(sweep, sizes)]
    shapes = [Shape(16384, h, v, bf16, sequences=16) for h, v in HEADS]
    ugly = Shape(4095, 1001, 100003, bf16, sequences=5)
    if name == "gpu-check":
        return [Run(shapes[0], True), Run(ugly, True)]
    if name == "gpu":
        return _speed([*shapes, ugly], 7)
    sizes = [(4096, 32768), (8192, 65536), (16384, 131072), (32768, 262144)]
    sweep = Shape(16384, 1536, 131072, bf16, sequences=16)
    return [*_sparse(shapes[0], 7), *_growth(sweep, sizes)]


def _speed(shapes: list[Shape], rounds: int) -> list[Run]:
    """The loss of every shape, and then its forward pass alone."""
    return [Run(s, backward, rounds=rounds) for backward in (True, False) for s in shapes]


def _sparse(shape: Shape, rounds: int) -> list[Run]:
    return [
        Run(replace(shape, zeros=zeros), True, PAIR, rounds, "zero-gradient rows")
        for zeros in (0.5, 0.9)
    ]


def _growth(sweep: Shape, sizes: list[tuple[int, int]]) -> list[Run]:
    tokens = [replace(sweep, tokens=tokens) for tokens, _ in sizes]
    vocabularies = [replace(sweep, vocabulary=vocabulary) for _, vocabulary in sizes]
    return [Run(s, True, PAIR, 3, "growth") for s in (*tokens, *vocabularies)]
