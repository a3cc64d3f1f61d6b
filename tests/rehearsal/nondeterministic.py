"""Which operators a GPU has no fixed order of sums for, and what PyTorch does about them.

The list is that of `torch.use_deterministic_algorithms` ("will throw a RuntimeError"), torch 2.13.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from typing import Any

import torch

ALWAYS = {
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "_ctc_loss_backward",
    "adaptive_max_pool2d_backward",
    "avg_pool3d_backward",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
    "histc",
    "max_unpool2d",
    "max_unpool3d",
    "nll_loss_forward",
    "nll_loss2d_forward",
    "put_",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward",
    "upsample_linear1d_backward",
    "upsample_trilinear3d_backward",
}
"""Operators of aten, whatever their arguments."""

CUBLAS = {"addbmm", "addmm", "addmv", "baddbmm", "bmm", "dot", "mm", "mv", "vdot"}
"""Operators that cuBLAS computes, with a fixed order only if its workspace has a fixed size."""

WORKSPACES = (":4096:8", ":16:8")


def refuse(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise or warn in deterministic mode, if the operator on a GPU has no fixed order."""
    if not torch.are_deterministic_algorithms_enabled():
        return
    name = _name(op)
    if _unordered(op, name, args, kwargs):
        alert(name)
    if name.removesuffix("_") in CUBLAS and not _workspace_is_fixed():
        _say(
            "Deterministic behavior was enabled with `torch.use_deterministic_algorithms(True)`, "
            "but this operation is not deterministic because it uses CuBLAS and you have CUDA >= "
            "10.2. Set CUBLAS_WORKSPACE_CONFIG=:4096:8 or CUBLAS_WORKSPACE_CONFIG=:16:8."
        )


@cache
def _name(op: Any) -> str:
    name: str = op.name().removeprefix("aten::").split(".")[0]
    return name


def alert(name: str) -> None:
    """What `at::Context::alertNotDeterministic` does, in deterministic mode."""
    _say(
        f"{name}_cuda does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'."
    )


def _unordered(op: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name in ("cumsum", "cumsum_"):
        dtype = kwargs.get("dtype") or args[0].dtype
        return bool(dtype.is_floating_point or dtype.is_complex)
    if name == "bincount":
        return (len(args) > 1 and args[1] is not None) or kwargs.get("weights") is not None
    if name == "median":
        return "dim" in op.name()
    if name.startswith("scatter_reduce"):
        return "prod" in args or kwargs.get("reduce") == "prod"
    if name == "_embedding_bag":
        return "max" in args or kwargs.get("mode") == 2
    return name in ALWAYS


@cache
def _workspace_is_fixed() -> bool:
    """Read once, as cuBLAS does: when the first product is computed."""
    return os.environ.get("CUBLAS_WORKSPACE_CONFIG") in WORKSPACES


def _say(message: str) -> None:
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)
