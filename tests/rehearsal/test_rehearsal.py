"""What a GPU runs, run on the pretended one: the same numbers as on the CPU."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import torch
from cuda_lines import ROOT
from planted import MIX_UPS
from rehearsed import Both
from scenarios import INTERPRETED, UPDATES
from tensors import assert_close_everywhere

EXACT = [name for name, (dtype, _) in UPDATES.items() if dtype == "float32"]
HALF = [name for name in UPDATES if name not in EXACT]


def approximately(facts: dict[str, Any], rel: float) -> list[Any]:
    return [pytest.approx(result, rel=rel, abs=1e-6) for result in facts["results"]]


def cosine(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Between all mean gradients, as one vector each."""
    names = [name for name in ours if name.startswith("exp_avg/")]
    assert names and ours.keys() == theirs.keys()
    flat = [torch.cat([x[name].flatten() for name in names]) for x in (ours, theirs)]
    return torch.cosine_similarity(*flat, dim=0).item()


@pytest.mark.parametrize("name", EXACT)
def test_updates_in_float32(name: str, both: Both) -> None:
    gpu, cpu = (x.of("updates")[name] for x in both)
    assert (gpu["device"], cpu["device"]) == ("cuda:0", "cpu")
    assert gpu["kernels"] == ("triton" if name in INTERPRETED else "torch")
    assert gpu["results"] == approximately(cpu, 2e-5)
    assert gpu["steps"] == cpu["steps"] > 0
    assert gpu["logprobs"] == pytest.approx(cpu["logprobs"], abs=1e-5)
    for kind in ("shares/exp_avg/", "shares/weights/", "pushed/"):
        ours, theirs = (x.named(f"updates/{name}/{kind}") for x in both)
        assert_close_everywhere(ours, theirs, 2e-5)


@pytest.mark.parametrize("name", HALF)
def test_updates_with_products_in_bfloat16(name: str, both: Both) -> None:
    """A GPU's products of the head are float32, those of a CPU are rounded: eight bits agree."""
    gpu, cpu = (x.of("updates")[name] for x in both)
    assert gpu["device"] == "cuda:0"
    for ours, theirs in zip(gpu["results"], cpu["results"], strict=True):
        assert ours["entropy"] == pytest.approx(theirs["entropy"], rel=0.01)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.1)
    shares = [x.named(f"updates/{name}/shares/") for x in both]
    assert cosine(*shares) > 0.99
    assert {t.dtype for t in shares[0].values()} == {torch.float32}


@pytest.mark.parametrize("case", ["ppo", "prime"])
def test_steps_of_a_second_model(case: str, both: Both) -> None:
    gpu, cpu = (x.of("credit")[case] for x in both)
    assert (gpu["device"], cpu["device"]) == ("cuda:0", "cpu")
    assert gpu["steps_taken"] == cpu["steps_taken"]
    assert gpu["advantages"] == pytest.approx(cpu["advantages"], abs=1e-4)
    assert gpu["moved"] == pytest.approx(cpu["moved"], rel=1e-3)
    for ours, theirs in zip(gpu["metrics"], cpu["metrics"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    for ours, theirs in zip(gpu["results"], cpu["results"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_shares_go_to_another_policy(both: Both) -> None:
    assert both.gpu.of("going_on")["equal"] and both.cpu.of("going_on")["equal"]


def test_weights_go_into_pinned_memory(both: Both) -> None:
    gpu, cpu = (x.of("pushed") for x in both)
    assert gpu["equal"] and cpu["equal"]
    assert (gpu["pinned"], cpu["pinned"]) == ([True, False], [False, False])


def test_zero3_takes_the_same_steps(both: Both) -> None:
    gpu, cpu = (x.of("zero3") for x in both)
    assert gpu["backend"] == "cpu:gloo,cuda:gloo"  # NCCL was asked for
    assert both.gpu.facts["counted"]["nccl"] == 1
    for dtype in ("float32", "bfloat16"):
        assert gpu[dtype]["device"] == "cuda:0"
    assert gpu["equal"] and cpu["equal"], "shares that came from another policy"
    assert gpu["offloaded"] == {"during rollouts": True, "for good": True}
    assert gpu["float32"]["results"] == approximately(cpu["float32"], 2e-5)
    for kind in ("shares/exp_avg/", "shares/weights/", "pushed/"):
        ours, theirs = (x.named(f"zero3/float32/{kind}") for x in both)
        assert_close_everywhere(ours, theirs, 2e-5)
    assert cosine(*(x.named("zero3/bfloat16/shares/") for x in both)) > 0.99


def test_a_run_its_resumption_and_its_export(both: Both) -> None:
    gpu, cpu = (x.of("run") for x in both)
    assert gpu["texts"] == cpu["texts"]
    assert gpu["resumed"] and gpu["exported"]
    for ours, theirs in zip(gpu["metrics"], cpu["metrics"], strict=True):
        assert ours["policy/entropy"] == pytest.approx(theirs["policy/entropy"], rel=1e-4)
        assert ours["policy/sampler_max_gap"] < 1e-4
        memory = {k for k in ours.keys() - theirs.keys() if k.startswith("memory/")}
        assert memory == {
            f"memory/{phase}_{what}"
            for phase in ("rollout", "update")
            for what in ("gpu", "gpu_peak", "planned")
        }
        assert ours["memory/update_gpu"] == 10.0
    assert "GPU memory in GiB, planned and in use: rollout" in gpu["screen"]


def test_doctor_is_content(both: Both) -> None:
    found = both.gpu.of("examined")
    assert found["healthy"], found["screen"]
    assert "Pretended GPU 40 GiB" in found["screen"]
    assert "which is for tests: TRITON_INTERPRET is set, chosen" in found["screen"]


def test_every_kernel_for_packed_sequences_gives_the_same_update(both: Both) -> None:
    """flash-attn to the bit; for torch 2.11 shared heads are repeated, and their gradients, once
    for each, rounded before they are added up."""
    found = both.gpu.of("attention_kernels")
    new, old, flash = ("torch 2.13", "torch 2.11", "flash-attn")
    for name in (new, old, flash):
        assert found[name] == {**found[new], "forward": 2, "backward": 2, "ordered": 2}
    weights = {n: both.gpu.named(f"attention_kernels/{n}/") for n in (new, old, flash)}
    assert all(torch.equal(t, weights[flash][n]) for n, t in weights[new].items())
    assert_close_everywhere(weights[old], weights[new], 2e-3)


def test_sliding_windows_are_the_kernels_business(both: Both) -> None:
    found = both.gpu.of("attention_kernels")["window"]
    assert found["windows"] == found["forward"] == 2


def test_no_second_rank_on_one_gpu(both: Both) -> None:
    assert "local rank 1 has no GPU: 1 visible" in both.gpu.of("too_many_ranks")["refused"]


def test_accelerate_comes_along_if_loading_needs_it(both: Both) -> None:
    """transformers asks for it on a GPU only, where no other test would see it missing."""
    refused = both.gpu.of("without_accelerate")["refused"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = any(name.startswith("accelerate") for name in project["dependencies"])
    assert required or not refused, refused


@pytest.mark.parametrize("name", MIX_UPS)
def test_a_mix_up_of_devices_is_caught(name: str, both: Both) -> None:
    said = both.gpu.of("mixed_up")[name]
    assert "on the same device" in said, said


def test_mistakes_that_were_made_once_would_be_seen(both: Both) -> None:
    found = both.gpu.of("of_old")
    assert found["float32 queries under autocast"]["forward"] == 0
    refused = found["torch 2.11 is asked for groups"]["refused"]
    assert "unexpected keyword argument 'enable_gqa'" in refused
    assert found["deterministic mode only warns"]["ordered"] == 0
