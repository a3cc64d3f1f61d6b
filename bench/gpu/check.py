"""The first ten minutes on a GPU: is it right, and then, how fast are the kernels?"""

from __future__ import annotations

import sys

from parts import OUTPUT, Part, main

TTRL = ("pydantic", "datasets", "math_verify", "tomli_w")
"""Packages of ttrl itself that a machine with PyTorch may lack."""

ENVIRONMENT = Part(
    "environment",
    "the machine, its GPU, versions, and how fast it copies and multiplies",
    40,
    ("bench/gpu/environment.py", OUTPUT),
    gate=True,
)


def tests(
    name: str, what: str, limit_s: int, *nodes: str, dry: tuple[str, ...], ttrl: bool
) -> Part:
    """A part that runs pytest, where the tests need ttrl's own packages or not."""
    plugin = ("-p", "pytest_record", "-p", "no:cacheprovider", "--record", OUTPUT)
    arguments = ("-m", "pytest", "-q", *plugin, *nodes)
    needs = ("pytest", *(TTRL if ttrl else ()))
    return Part(name, what, limit_s, arguments, dry, needs, correctness=True)


def kernels(name: str, what: str, limit_s: int, profile: str) -> Part:
    """A part that runs the bench of the kernels."""
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "bench/kernels")
    options = ("--output", OUTPUT, "--profile", profile, "--benchmark-quiet")
    needs = ("pytest", "pytest_benchmark")
    return Part(name, what, limit_s, (*arguments, *options), ("--profile", "tiny"), needs)


def task(name: str, what: str, limit_s: int, *options: str, correctness: bool = False) -> Part:
    """A part that trains the embedded task."""
    arguments = ("bench/gpu/task.py", OUTPUT, *options)
    needs = (*TTRL, *(("deepspeed",) if "--backend=zero3" in options else ()))
    return Part(name, what, limit_s, arguments, needs=needs, correctness=correctness)


ATTENTION_TESTS = "tests/unit/test_attention.py::test_"
PARTS = (
    ENVIRONMENT,
    Part(
        "launch",
        "one launch of each Triton row kernel against float64",
        60,
        ("bench/gpu/launch.py", OUTPUT),
        correctness=True,
    ),
    tests(
        "kernel_tests",
        "the loss on the GPU and the Triton rows, against float64",
        90,
        "tests/kernels/test_cuda.py",
        "tests/kernels/test_triton_rows.py",
        dry=("-k", "cuda or (test_statistics and 33-4.0 and float32)"),
        ttrl=False,
    ),
    Part(
        "attention",
        "packed attention, forward and backward, against float32",
        40,
        ("bench/gpu/attention.py", OUTPUT),
        correctness=True,
        needs=TTRL,
    ),
    tests(
        "attention_tests",
        "the same with every layout of heads and windows; Liger's gradients",
        50,
        f"{ATTENTION_TESTS}the_kernel_computes_what_the_other_path_does",
        "tests/unit/test_packed_models.py::test_ligers_kernels_give_the_same_gradients",
        dry=(f"{ATTENTION_TESTS}no_row_sees_a_later_one",),
        ttrl=True,
    ),
    task(
        "train_local",
        "one step of the embedded task in float32, and the same update on the CPU",
        70,
        "--small",
        "--against-cpu",
        correctness=True,
    ),
    task(
        "train_zero3",
        "one step of the embedded task in bfloat16 under ZeRO-3 with one rank",
        60,
        "--small",
        "--backend=zero3",
        "--dtype=bfloat16",
        correctness=True,
    ),
    kernels("kernels", "the loss against every peer, at one head", 150, "gpu-check"),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, PARTS))
