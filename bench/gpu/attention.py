"""Packed attention as training calls it, forward and backward, against each sequence in float32.

The truth is PyTorch's attention in float32, one sequence after the other; beside ours stands the
same in bfloat16, whose error sets the bar: it rounds the same inputs and results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from environment import seconds
from record import Record, part_parser
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ttrl.models.attention import packed_attention
from ttrl.types import PackedSequences

HEADS = {"qwen2.5-7b": (28, 4, 128), "qwen2.5-1.5b": (12, 2, 128), "llama-8b": (32, 8, 128)}
"""Query heads, key heads, size of a head."""
LENGTHS = (2048, 1, 700, 129, 1300, 64, 2000, 950)
NAMES = ("out", "query", "key", "value")
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""[1, heads, T, D] each, to [1, T, heads, D]."""


def main() -> None:
    """Compare and time, for the heads of each model."""
    options = part_parser(__doc__).parse_args()
    device = "cpu" if options.dry_run else "cuda"
    heads = {"tiny": (4, 2, 16)} if options.dry_run else HEADS
    lengths = (9, 1, 14) if options.dry_run else LENGTHS
    record = Record(options.output)
    record["lengths"] = lengths
    wrong = []
    for model, sizes in heads.items():
        record[model] = found = compare(lengths, sizes, device)
        limits = {name: 2 * found["plain"][name] + 1e-3 for name in NAMES}
        wrong += [f"{model} {n}" for n in NAMES if not found["ours"][n] <= limits[n]]
    if wrong:
        raise SystemExit(f"more than twice the error of plain bfloat16: {', '.join(wrong)}")


def compare(lengths: Sequence[int], sizes: tuple[int, int, int], device: str) -> dict[str, object]:
    """Errors relative to all of each result, milliseconds, and whether a second time is the same
    to the bit, with torch's deterministic operations and without."""
    query_heads, key_heads, width = sizes
    total = sum(lengths)
    g = torch.Generator(device).manual_seed(0)
    shapes = [(1, h, total, width) for h in (query_heads, key_heads, key_heads)]
    qkv = [torch.randn(s, generator=g, device=device).bfloat16() for s in shapes]
    downstream = torch.randn(1, total, query_heads, width, generator=g, device=device).bfloat16()
    ends = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)

    def ours(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        sequences = PackedSequences(ends, max(lengths))
        return packed_attention(torch.nn.Module(), query, key, value, None, sequences=sequences)[0]

    def one_by_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        groups = query_heads // key_heads
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        parts = [
            scaled_dot_product_attention(q, k, v, is_causal=True)
            for a, b in pairwise(ends.tolist())
            for q, k, v in [[x[:, :, a:b] for x in (query, key, value)]]
        ]
        return torch.cat(parts, 2).transpose(1, 2)

    with sdpa_kernel(SDPBackend.MATH):  # plain matrix products, which float32 does not round
        truth = run(one_by_one, [x.float() for x in qkv], downstream.float())
    found: dict[str, object] = {
        name: dict(zip(NAMES, errors(run(attention, qkv, downstream), truth), strict=True))
        for name, attention in {"ours": ours, "plain": one_by_one}.items()
    }
    found["ms"] = 1e3 * seconds(lambda: run(ours, qkv, downstream))
    for name, strict in {"as in training": False, "strict": True}.items():
        found[f"same bits, {name}"] = repeats(lambda: run(ours, qkv, downstream), strict)
    return found


def run(
    attention: Attention, qkv: Sequence[torch.Tensor], downstream: torch.Tensor
) -> list[torch.Tensor]:
    """The output and the gradients of the three inputs."""
    leaves = [x.detach().requires_grad_() for x in qkv]
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, downstream)]


def errors(found: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]) -> list[float]:
    """Of each tensor, relative to it as a whole."""
    return [float((a.float() - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True)]


def repeats(call: Callable[[], list[torch.Tensor]], strict: bool) -> bool | str:
    """Whether two calls give the same bits; why not, where torch refuses the call."""
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    try:
        return all(torch.equal(a, b) for a, b in zip(call(), call(), strict=True))
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    finally:
        torch.use_deterministic_algorithms(False)


if __name__ == "__main__":
    main()
