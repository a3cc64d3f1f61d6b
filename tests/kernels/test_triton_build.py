"""The Triton kernels compiled for real GPUs, without one: registers, stack, shared memory.

What the interpreter cannot know, the compiler's own report says: every variant of each kernel that
can be launched is built for each chip and its machine code inspected.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton")
if "TRITON_INTERPRET" in os.environ:
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from ttrl_kernels.rows import triton as rows  # noqa: E402

SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes that one program may have, by compute capability: A100; H100 and H200; B200."""

REGISTERS = {False: 80, True: 128}
"""Per thread, without and with softcap: three or two programs of 256 threads share the 65,536 of a
multiprocessor; with fewer, too few loads are under way (see `rows.BLOCK`)."""

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}

Variant = tuple[Any, dict[str, str], dict[str, Any]]
"""Kernel, types of its pointers, constants."""


class Usage(NamedTuple):
    registers: int
    stack: int
    """Bytes of local memory per thread: where spilled registers go."""
    shared: int


def build(
    kernel: Any,
    capability: int,
    pointers: dict[str, str],
    constants: dict[str, Any],
    aligned: bool = True,
    **options: Any,
) -> Any:
    """The kernel compiled as a launch would. ``pointers`` overrides the type of each pointer;
    ``constants`` holds constexprs and arguments that are None. With ``aligned``, rows start at
    multiples of 16 logits, as those of next to all vocabularies do."""
    signature, divisible = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = pointers.get(name, "*fp32")
        else:
            signature[name] = "fp32" if name == "softcap" else "i32"
        if signature[name].startswith("*") or (aligned and signature[name] == "i32"):
            divisible[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=divisible)
    options = {**rows.OPTIONS, **options}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def usage(compiled: Any, folder: Path) -> Usage:
    """What the machine code takes, by the disassembler that comes with Triton."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    report = subprocess.run(
        [cuobjdump, "-res-usage", cubin], capture_output=True, text=True, check=True
    )
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", report.stdout)
    assert found, report.stdout + report.stderr
    registers, stack, shared, local = map(int, found.groups())
    # The machine code only knows shared memory of a fixed size; most of it is asked for at launch.
    return Usage(registers, stack + local, shared + compiled.metadata.shared)


def complaints(used: Usage, capability: int, softcap: bool) -> list[str]:
    """Why this kernel must not be shipped; empty for a good one."""
    limits = {"registers": REGISTERS[softcap], "stack": 0, "shared": SHARED_MEMORY[capability]}
    return [
        f"{name} {getattr(used, name)} > {limit} on sm_{capability}"
        for name, limit in limits.items()
        if getattr(used, name) > limit
    ]


def optional(name: str, present: bool) -> dict[str, None]:
    return {} if present else {name: None}


def stats_variant(dtype: torch.dtype, softcap: bool) -> Variant:
    pointers = {"logits_ptr": TYPES[dtype], "targets_ptr": "*i64"}
    constants = {**rows.stats_config(dtype), **optional("softcap", softcap)}
    return rows.row_stats_kernel, pointers, constants


def grad_variant(
    dtype: torch.dtype, out_dtype: torch.dtype, softcap: bool, entropy: bool
) -> Variant:
    pointers = {
        "logits_ptr": TYPES[dtype],
        "out_ptr": TYPES[out_dtype],
        "rows_ptr": "*i64",
        "targets_ptr": "*i64",
    }
    constants = {
        "BLOCK": rows.BLOCK,
        **optional("softcap", softcap),
        **optional("grad_entropy_ptr", entropy),
    }
    return rows.row_grad_kernel, pointers, constants


F32, BF16, BOTH = torch.float32, torch.bfloat16, (False, True)
STORED = [(F32, F32), (F32, BF16), (BF16, BF16)]  # logits and their gradients
VARIANTS = {
    **{("stats", *v): stats_variant(*v) for v in itertools.product((F32, BF16), BOTH)},
    **{("grad", *v): grad_variant(*v[0], *v[1:]) for v in itertools.product(STORED, BOTH, BOTH)},
}


@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_every_variant_fits_the_chip(capability: int, tmp_path: Path) -> None:
    bad = []
    for (name, variant), aligned in itertools.product(VARIANTS.items(), BOTH):
        kernel, pointers, constants = variant
        compiled = build(kernel, capability, pointers, constants, aligned=aligned)
        where = f"{' '.join(map(str, name))}, aligned={aligned}: "
        used = usage(compiled, tmp_path)
        bad += [where + c for c in complaints(used, capability, "softcap" not in constants)]
        assert ".f64" not in compiled.asm["ptx"], where + "a float became double (Liger #1362)"
    assert not bad, "\n".join(bad)


def places(ptx: str, pattern: str) -> list[int]:
    return [m.start() for m in re.finditer(pattern, ptx)]


@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_every_load_of_a_block_comes_before_the_stores_over_it(capability: int) -> None:
    """The narrow gradient is written where other warps of the program have yet to read."""
    kernel, pointers, constants = grad_variant(F32, BF16, True, True)
    ptx = build(kernel, capability, pointers, constants).asm["ptx"]
    loads, stores = places(ptx, r"ld\.global\S*\.v4"), places(ptx, r"st\.global")
    (barrier,) = places(ptx, r"bar(rier)?\.sync")
    assert len(loads) == 4 and max(loads) < barrier < min(stores)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_threads_exchange_nothing_until_the_end_of_the_row(
    capability: int, dtype: torch.dtype
) -> None:
    kernel, pointers, constants = stats_variant(dtype, False)
    ptx = build(kernel, capability, pointers, constants).asm["ptx"]
    loads = places(ptx, r"ld\.global\S*\.v4")
    assert len(loads) == constants["DEPTH"]
    exchanges = places(ptx, r"bar(rier)?\.sync|shfl")
    assert exchanges and max(loads) < min(exchanges)


# --- that the inspection sees anything


@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_a_kernel_that_spills_is_caught(capability: int, tmp_path: Path) -> None:
    kernel, pointers, constants = stats_variant(F32, True)
    compiled = build(kernel, capability, pointers, constants, maxnreg=24)
    assert any("stack" in c for c in complaints(usage(compiled, tmp_path), capability, True))


@triton.jit
def _transpose(x_ptr: tl.tensor, y_ptr: tl.tensor, N: tl.constexpr, M: tl.constexpr) -> None:
    rows = tl.arange(0, N)[:, None]
    columns = tl.arange(0, M)[None, :]
    x = tl.load(x_ptr + rows * M + columns)
    tl.store(y_ptr + tl.trans(columns) * N + tl.trans(rows), tl.trans(x))


@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_a_kernel_with_too_much_shared_memory_is_caught(capability: int, tmp_path: Path) -> None:
    compiled = build(_transpose, capability, {}, {"N": 256, "M": 256}, num_warps=32)
    assert any("shared" in c for c in complaints(usage(compiled, tmp_path), capability, True))
