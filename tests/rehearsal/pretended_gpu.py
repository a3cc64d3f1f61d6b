"""A GPU that is not there: tensors that say they are on ``cuda:0``, and compute on the CPU.

A `GpuTensor` is a view of ordinary memory whose device, dispatch keys and rules are those of CUDA:
autograd, autocast and the optimizers of PyTorch take their CUDA ways with it, and an operator that
is given one beside a tensor of the CPU refuses as a GPU's kernel would.

`switch_on` needs ``pretended_gpu.cpp``, compiled and loaded before torch is imported: see
`gpu_library`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from typing import Any

import nondeterministic
import torch

GPU = torch.device("cuda", 0)

aten = torch.ops.aten

ANY_DEVICES = {
    aten.copy_.default,
    aten._to_copy.default,
    aten._foreach_copy_.default,
}
"""Operators whose tensors may be on different devices."""

INDICES = {
    aten.index.Tensor: 1,
    aten._unsafe_index.Tensor: 1,
    aten.index_put.default: 1,
    aten.index_put_.default: 1,
    aten._index_put_impl_.default: 1,
    aten._unsafe_index_put.default: 1,
}
"""Operators that take indices on the CPU as well, and the place of that argument."""

TAKES_NUMBERS = {aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor}
"""Operators, beside those of one element at a time, that read a number from a CPU's tensor."""


def _mm(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype, *, out: torch.Tensor) -> torch.Tensor:
    """The product of half-precision matrices, in float32."""
    _refuse_products(a, b, dtype, out)
    return out.copy_(a.to(dtype) @ b.to(dtype))


def _addmm(
    added: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    dtype: torch.dtype,
    *,
    out: torch.Tensor,
    **factors: float,
) -> torch.Tensor:
    """The same, and ``added`` in either type."""
    _refuse_products(a, b, dtype, out)
    return out.copy_(torch.addmm(added.to(dtype), a.to(dtype), b.to(dtype), **factors))


def _refuse_products(
    a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype, out: torch.Tensor
) -> None:
    half = a.dtype == b.dtype and a.dtype in (torch.bfloat16, torch.float16)
    if out.dtype != dtype or not ((half and dtype == torch.float32) or a.dtype == b.dtype == dtype):
        raise RuntimeError(
            "out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs: "
            f"{a.dtype}, {b.dtype} -> {dtype}, out {out.dtype}"
        )


ONLY_CUDA = {aten.mm.dtype_out: _mm, aten.addmm.dtype_out: _addmm}
"""Operators that PyTorch has for CUDA only, on the CPU."""


class GpuTensor(torch.Tensor):
    """A tensor on `GPU`, of which ordinary memory of this process is the storage."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator that has at least one of these among its arguments."""
        if op is torch.ops.prim.device.default:
            return GPU
        return run(op, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> GpuTensor:
        """As that of a CUDA tensor: another storage, the same kind of leaf."""
        if id(self) not in memo:
            copy = self.detach().clone().requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copy._is_param = True
            memo[id(self)] = copy
        found: GpuTensor = memo[id(self)]
        return found

    def tolist(self) -> Any:
        """Python's numbers."""
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        """As that of a CUDA tensor."""
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
            "to host memory first."
        )

    def __repr__(self, **_: Any) -> str:
        return f"GpuTensor({on_cpu(self)!r})"

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), spec)

    def record_stream(self, stream: Any) -> None:
        """There is one stream."""


def on_gpu(cpu: torch.Tensor) -> GpuTensor:
    """The same memory, as a tensor of the GPU."""
    made: GpuTensor = torch.Tensor._make_subclass(
        GpuTensor, cpu, False, dispatch_device=True, device_for_backend_keys=GPU
    )
    return made


def on_cpu(gpu: torch.Tensor) -> torch.Tensor:
    """The same memory, as a tensor of the CPU."""
    # In inference mode a view of what was made outside of it is no inference tensor either.
    inside = torch.is_inference_mode_enabled()
    with nullcontext() if inside == gpu.is_inference() else torch.inference_mode(not inside):
        plain = torch.empty(0, dtype=gpu.dtype, device="cpu")
    return plain.set_(gpu.untyped_storage(), gpu.storage_offset(), gpu.shape, gpu.stride())


def run(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a GPU would give for an operator, or the error that it would raise.

    Args:
        op: an overload, as ``aten.add.Tensor``.
        args: among them `GpuTensor`, or none if ``kwargs`` ask for the GPU.
        kwargs: the rest.
    """
    if op.namespace not in ("aten", "prim", "c10d"):  # one of Python's: it calls those
        return custom(op)(*args, **kwargs)
    if is_composite(op):  # in inference mode they get here; what they are made of does otherwise
        return op.decompose(*args, **kwargs)
    if op is aten._fused_sdp_choice.default:
        return 0  # the one that is put together from other operators
    nondeterministic.refuse(op, args, kwargs)
    plain = Plain()
    cpu_args, cpu_kwargs = plain.of(args), plain.of(kwargs)
    refuse_mixture(op, args, plain)
    here = bool(plain.given)
    if (device := kwargs.get("device")) is not None:
        here = torch.device(device).type == "cuda"
        cpu_kwargs["device"] = torch.device("cpu")
    cpu_kwargs.pop("pin_memory", None)
    found = ONLY_CUDA.get(op, op)(*cpu_args, **cpu_kwargs)
    for i, name in written(op):
        for x in plain.tensors(cpu_args[i] if i < len(cpu_args) else cpu_kwargs.get(name)):
            if not same_place(gpu := plain.given[id(x)][1], x):
                put(gpu, x)
    return plain.back(found, here)


class Plain:
    """The arguments of an operator as tensors of the CPU, and which tensors they were."""

    def __init__(self) -> None:
        self.given: dict[int, tuple[torch.Tensor, GpuTensor]] = {}
        """By the identity of its counterpart on the CPU, a tensor of the GPU."""
        self.strangers: list[torch.Tensor] = []
        """Tensors that are on the CPU."""

    def of(self, value: Any) -> Any:
        """An argument, or several."""
        if isinstance(value, GpuTensor):
            counterpart = on_cpu(value)
            self.given[id(counterpart)] = (counterpart, value)
            return counterpart
        if isinstance(value, torch.Tensor):
            self.strangers.append(value)
        elif type(value) in (list, tuple):
            return type(value)(map(self.of, value))
        elif type(value) is dict:
            return {name: self.of(x) for name, x in value.items()}
        return value

    def tensors(self, value: Any) -> Iterator[torch.Tensor]:
        """Those of an argument that were given on the GPU."""
        if id(value) in self.given:
            yield value
        elif isinstance(value, list | tuple):
            for part in value:
                yield from self.tensors(part)

    def back(self, value: Any, here: bool) -> Any:
        """A result; ``here``: new tensors are the GPU's."""
        if isinstance(value, torch.Tensor):
            if id(value) in self.given:
                return self.given[id(value)][1]
            return on_gpu(value) if here else value
        if type(value) in (list, tuple):
            return type(value)(self.back(x, here) for x in value)
        return value


def refuse_mixture(op: Any, args: tuple[Any, ...], plain: Plain) -> None:
    """Raise a RuntimeError where a GPU's kernel would find a tensor in the CPU's memory."""
    strangers = plain.strangers
    if not strangers or not plain.given or op in ANY_DEVICES or op.namespace == "c10d":
        return
    if op in INDICES:
        if not isinstance(args[0], GpuTensor):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        indices = set(map(id, args[INDICES[op]]))
        strangers = [x for x in strangers if id(x) not in indices]
    if torch.Tag.pointwise in op.tags or op in TAKES_NUMBERS or op in INDICES:
        strangers = [x for x in strangers if x.dim() > 0]
    if strangers:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and {strangers[0].device}! (when checking arguments for {op})"
        )


def custom(op: Any) -> Callable[..., Any]:
    """The Python function of an operator made with `torch.library.custom_op`."""
    definition = torch._library.custom_ops.OPDEFS[op.name().split(".")[0]]
    function: Callable[..., Any] = definition._init_fn
    return function


@cache
def is_composite(op: Any) -> bool:
    """Whether an operator is made of others, on every device."""
    return bool(op._can_decompose())


@cache
def written(op: Any) -> tuple[tuple[int, str], ...]:
    """Places and names of the arguments that an operator writes to."""
    arguments = op._schema.arguments
    return tuple(
        (i, a.name) for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write
    )


def put(gpu: GpuTensor, cpu: torch.Tensor) -> None:
    """Have ``gpu`` be the elements that its counterpart on the CPU has become: it was resized."""
    if gpu.untyped_storage()._cdata != cpu.untyped_storage()._cdata:
        gpu.data = on_gpu(cpu)
    else:
        with torch._C._DisableTorchDispatch():
            gpu.as_strided_(cpu.shape, cpu.stride(), cpu.storage_offset())


def same_place(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether both are the same elements of the same memory."""
    return (
        a.shape == b.shape
        and a.stride() == b.stride()
        and a.storage_offset() == b.storage_offset()
        and a.untyped_storage()._cdata == b.untyped_storage()._cdata
    )


_apply_own = torch.nn.Module._apply


def _apply(self: torch.nn.Module, fn: Any, recurse: bool = True) -> torch.nn.Module:
    """Replace parameters that a module's ``to`` moves: their own objects are not `GpuTensor`."""
    for child in self.children() if recurse else ():
        child._apply(fn)
    moving = any(type(p) is torch.nn.Parameter for p in self._parameters.values())
    torch.__future__.set_swap_module_params_on_conversion(moving)
    try:
        return _apply_own(self, fn, recurse=False)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


_library: list[torch.library.Library] = []


def switch_on() -> None:
    """From here on, ``device="cuda"`` means the pretended GPU."""
    import pretended_cuda

    anything = torch.library.Library("_", "IMPL")
    anything.fallback(lambda op, *args, **kwargs: run(op, args, kwargs), "CUDA")
    own = torch.library.Library("aten", "IMPL")
    # PyTorch's own, of all devices, calls kernels that a CPU build lacks.
    own.impl("copy_", lambda *args, **kwargs: run(aten.copy_.default, args, kwargs), "CUDA")
    _library.extend((anything, own))
    for module in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
        importlib.import_module(module)._foreach_supported_types.append(GpuTensor)
    torch.nn.Module._apply = _apply
    pretended_cuda.answer()
