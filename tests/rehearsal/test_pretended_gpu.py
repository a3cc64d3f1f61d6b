"""The pretended GPU refuses what a GPU refuses, takes what it takes, and computes the same."""

from __future__ import annotations

import pytest
import torch
from rehearsed import Both

SAME_DEVICE = "RuntimeError: Expected all tensors to be on the same device, but found at least two"
INDICES = "RuntimeError: indices should be either on cpu or on the same device"
UNORDERED = "RuntimeError: {}_cuda does not have a deterministic implementation"


def test_tensors_of_two_devices_are_never_mixed(both: Both) -> None:
    found = both.gpu.of("rules")["mixtures"]
    by_index = {"index of the GPU", "mask of the GPU"}
    assert len(found) == 14 and by_index < found.keys()
    for name, said in found.items():
        assert said.startswith(INDICES if name in by_index else SAME_DEVICE), name


def test_what_a_gpu_takes_from_the_cpu_and_gives_to_it(both: Both) -> None:
    found = both.gpu.of("rules")["allowed"]
    assert found.pop("numpy").startswith("TypeError: can't convert cuda:0 device type tensor")
    assert found == {
        "number": "[0.0, 2.0, 4.0]",
        "index": "[2.0, 0.0]",
        "copy": "[0.0, 1.0, 2.0]",
        "copy, the other way round": "cuda:0",
        "item": "1.0",
        "factory": "cuda:0",
        "from a list": "cuda:0",
        "view": "[1.0, 2.0, 3.0]",
        "cpu": "cpu",
        "resized": "4",
    }


def test_deterministic_mode_refuses_what_has_no_fixed_order(both: Both) -> None:
    """As torch's documentation of `use_deterministic_algorithms` lists it."""
    found = both.gpu.of("rules")["order"]
    refused = {"cumsum": "cumsum", "put_": "put_", "median": "median", "histc": "histc"}
    for name, operator in refused.items():
        assert found.pop(name).startswith(UNORDERED.format(operator))
    assert "uses CuBLAS" in found.pop("product without a workspace")
    assert found.pop("warning").startswith("cumsum_cuda does not have a deterministic")
    assert found == {
        "cumsum of integers": "[0, 0, 2]",
        "cumsum on the CPU": "[1.0, 2.0, 3.0]",
        "index_add_": "[3.0, 1.0, 2.0]",
        "scatter_add_": "[3.0, 1.0, 2.0]",
        "warned": "[1.0, 2.0, 3.0]",
        "product with a workspace": "3.0",
    }


def test_autograd_autocast_and_optimizers_take_their_cuda_ways(both: Both) -> None:
    found = both.gpu.of("rules")["numbers"]
    assert found["autocast"] == "torch.bfloat16"
    assert found["gradient"] == ["torch.float32", "cuda:0"]
    # Autograd has a thread for each GPU; those that Python has not started are called Dummy.
    assert len(found["threads"]) == 1 and found["threads"][0].startswith("Dummy")
    step = found["a fused step that is counted on the CPU"]
    assert step.startswith(SAME_DEVICE)


@pytest.mark.parametrize("kind", ["foreach", "fused"])
def test_adamw_takes_the_same_steps(kind: str, both: Both) -> None:
    weight = both.gpu.tensors["rules/weight"].clone().requires_grad_()
    adam = torch.optim.AdamW([weight], lr=0.1)
    for _ in range(3):
        (weight.exp() * weight).sum().backward()
        adam.step()
        adam.zero_grad()
    torch.testing.assert_close(both.gpu.tensors[f"rules/{kind}"], weight.detach())
