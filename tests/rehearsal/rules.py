"""Whether the pretended GPU keeps the rules of one: each is tried, and what was said is kept."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F


def seen(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What was said, by group and name: an error's text, or what came out."""
    facts = {"mixtures": mixtures(), "allowed": allowed(), "order": order(), "kernels": kernels()}
    own, tensors = numbers()
    return {**facts, "numbers": own}, tensors


def said(attempt: Callable[[], Any]) -> str:
    """What an attempt raises; else what it gives."""
    try:
        return str(attempt())
    except (RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def mixtures() -> dict[str, str]:
    """Operators that are given tensors of both devices, and must refuse."""
    here, there = torch.ones(3, 3, device="cuda"), torch.ones(3, 3)
    index, mask = torch.tensor([0, 2], device="cuda"), torch.ones(3, 3, dtype=torch.bool)
    attempts: dict[str, Callable[[], Any]] = {
        "sum": lambda: here + there,
        "sum, the other way round": lambda: there + here,
        "in place": lambda: here.add_(there),
        "product": lambda: here @ there,
        "linear": lambda: F.linear(here, there),
        "cat": lambda: torch.cat([here, there]),
        "where": lambda: torch.where(mask, here, here),
        "embedding": lambda: F.embedding(index.cpu(), here),
        "index_select": lambda: here.index_select(0, index.cpu()),
        "gather": lambda: here.gather(0, index.cpu().unsqueeze(1)),
        "number of the GPU": lambda: torch.tensor(2.0, device="cuda") * there,
        "index of the GPU": lambda: there[index],
        "mask of the GPU": lambda: there[here > 0],
        "out": lambda: torch.add(here, here, out=torch.empty(3, 3)),
    }
    return {name: said(attempt) for name, attempt in attempts.items()}


def allowed() -> dict[str, str]:
    """What a GPU takes from the CPU, and what it does not give to it."""
    here, there = torch.arange(3.0, device="cuda"), torch.arange(3.0)
    return {
        "number": said(lambda: (here * torch.tensor(2.0)).tolist()),
        "index": said(lambda: here[torch.tensor([2, 0])].tolist()),
        "copy": said(lambda: torch.zeros(3).copy_(here).tolist()),
        "copy, the other way round": said(
            lambda: torch.zeros(3, device="cuda").copy_(there).device
        ),
        "numpy": said(lambda: here.numpy()),
        "item": said(lambda: here[1].item()),
        "factory": said(lambda: torch.full((2,), 1.5, device="cuda").device),
        "from a list": said(lambda: torch.tensor([1, 2], device="cuda").device),
        "view": said(lambda: (here.view(3, 1).add_(1), here.tolist())[1]),
        "cpu": said(lambda: here.cpu().device),
        "resized": said(lambda: torch.empty(0, device="cuda").resize_(4).shape[0]),
    }


def order() -> dict[str, str]:
    """Operators without a fixed order of sums in deterministic mode, strict and warning."""
    import nondeterministic

    here, index = torch.ones(3, device="cuda"), torch.tensor([0, 0, 2], device="cuda")
    attempts: dict[str, Callable[[], Any]] = {
        "cumsum": lambda: here.cumsum(0).tolist(),
        "cumsum of integers": lambda: index.cumsum(0).tolist(),
        "cumsum on the CPU": lambda: here.cpu().cumsum(0).tolist(),
        "index_add_": lambda: here.clone().index_add_(0, index, here).tolist(),
        "scatter_add_": lambda: here.clone().scatter_add_(0, index, here).tolist(),
        "put_": lambda: here.clone().put_(index, here, accumulate=True).tolist(),
        "median": lambda: here.median(0).values.item(),
        "histc": lambda: here.histc(2).tolist(),
    }
    mode = torch.get_deterministic_debug_mode()
    facts = {}
    for name, attempt in attempts.items():
        torch.use_deterministic_algorithms(True)
        facts[name] = said(attempt)
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        facts["warned"] = said(attempts["cumsum"])
    facts["warning"] = "; ".join(str(w.message) for w in found)
    torch.use_deterministic_algorithms(True)
    workspace = os.environ.pop("CUBLAS_WORKSPACE_CONFIG")
    for name in ("product without a workspace", "product with a workspace"):
        nondeterministic._workspace_is_fixed.cache_clear()
        facts[name] = said(lambda: (here.view(1, 3) @ here.view(3, 1)).item())
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace
    torch.set_deterministic_debug_mode(mode)
    return facts


def kernels() -> dict[str, str]:
    """Calls that the attention kernels must refuse, and one that they take."""
    import varlen

    x = torch.ones(5, 2, 8, device="cuda", dtype=torch.bfloat16)
    ends = torch.tensor([0, 2, 5], device="cuda", dtype=torch.int32)

    def call(q: Any = x, k: Any = x, ends: Any = ends, longest: Any = 3, **options: Any) -> str:
        return str(varlen.torch_2_13(q, k, k, ends, ends, longest, longest, **options).shape)

    attempts: dict[str, Callable[[], Any]] = {
        "taken": call,
        "float32": lambda: call(x.float(), x.float()),
        "on the CPU": lambda: call(x.cpu(), x.cpu()),
        "other types": lambda: call(x, x.half()),
        "64-bit ends": lambda: call(ends=ends.long()),
        "ends on the CPU": lambda: call(ends=ends.cpu()),
        "ends that leave a row out": lambda: call(ends=ends[:2]),
        "too short a longest": lambda: call(longest=2),
        "a longest on the GPU": lambda: call(longest=torch.tensor(3, device="cuda")),
        "strides": lambda: call(x.transpose(1, 2), x.transpose(1, 2)),
        "groups unasked": lambda: call(k=x[:, :1]),
        "groups asked": lambda: call(k=x[:, :1], enable_gqa=True),
        "groups asked of 2.11": lambda: varlen.torch_2_11(
            x, x, x, ends, ends, 3, 3, enable_gqa=True
        ),
    }
    return {name: said(attempt) for name, attempt in attempts.items()}


def numbers() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Autograd, autocast, checkpointing and optimizers of PyTorch on the GPU."""
    threads: list[str] = []

    class Noted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            threads.append(threading.current_thread().name)
            return grads[0]

    weight = torch.linspace(-1, 1, 12).view(3, 4)
    tensors = {"weight": weight.clone()}
    facts: dict[str, Any] = {}
    for name, options in {"foreach": {"foreach": True}, "fused": {"fused": True}}.items():
        own = weight.cuda().requires_grad_()
        adam = torch.optim.AdamW([own], lr=0.1, **options)
        for _ in range(3):
            (own.exp() * own).sum().backward()
            adam.step()
            adam.zero_grad()
        tensors[name] = own.detach().cpu()
    own = weight.cuda().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        product = F.linear(own, own)
        facts["autocast"] = str(product.dtype)
    Noted.apply(product).sum().backward()  # type: ignore[no-untyped-call]
    facts["gradient"] = [str(own.grad.dtype), str(own.grad.device)]
    facts["threads"] = threads
    step = torch.optim.AdamW([own], fused=True)
    step.state[own] = {
        "step": torch.tensor(0.0),
        "exp_avg": torch.zeros_like(own),
        "exp_avg_sq": torch.zeros_like(own),
    }
    facts["a fused step that is counted on the CPU"] = said(step.step)
    return facts, tensors
