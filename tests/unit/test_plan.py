"""Plans of real models on real machines, from their config files alone."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import types
from pathlib import Path
from typing import Any

import pytest
from plans import A100_40GB, CONFIGS, MACHINES, RECIPES, gib, job_of, outline, plan_of
from rich.console import Console

from ttrl.models.pretrained import load_bare_outline
from ttrl.plan import GIB, Machine, ModelShape, plan
from ttrl.plan.host import host_memory
from ttrl.plan.machine import SHARES
from ttrl.plan.report import show
from ttrl.plan.speed import collective_seconds, optimizer_seconds
from ttrl.report.display import Display
from ttrl.run.planned import planned_memory
from ttrl.settings import ModelSettings
from ttrl.settings.recipe import RECIPES as RECIPE_FOLDER
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError


@pytest.mark.parametrize(
    ("model", "parameters", "kv_kib"),
    [
        ("qwen2.5-math-1.5b", 1_543_714_304, 28),
        ("qwen2.5-math-7b", 7_615_616_512, 56),
        ("qwen2.5-7b", 7_615_616_512, 56),
        ("llama3.1-8b-instruct", 8_030_261_248, 128),
        ("r1-llama-8b", 8_030_261_248, 128),
        ("qwen3-8b", 8_190_735_360, 144),
        ("qwen2.5-32b", 32_763_876_352, 256),
        ("llama3.3-70b-instruct", 70_553_706_496, 320),
    ],
)
def test_the_published_models_have_their_published_sizes(
    model: str, parameters: int, kv_kib: int
) -> None:
    shape = ModelShape.of(outline(model))
    assert shape.parameters == parameters
    assert shape.kv_bytes_per_token() == kv_kib * 1024
    assert shape.tied == (model == "qwen2.5-math-1.5b")


@pytest.mark.parametrize(("tokens", "activations", "total"), [(16384, 7.1, 30), (32768, 14.2, 37)])
def test_the_7b_table_worked_out_by_hand(tokens: int, activations: float, total: float) -> None:
    """Qwen2.5-7B on 8 x A100-40GB without a reference model: another derivation of the same run,
    in GiB, within 10 %. Its activations are what all layers and the recomputed one keep; the
    gradients that pass are among its overheads."""
    found = plan_of(
        "8xa100-40gb/qwen2.5-7b",
        "loss.kl_coef=0.0",
        f"memory.tokens_per_batch={tokens}",
        "rollout.tensor_parallel=1",
    )
    assert found.fits
    assert gib(found, "backward", "parameters") == pytest.approx(1.77, rel=0.01)
    assert gib(found, "backward", "gradients") == pytest.approx(1.77, rel=0.01)
    assert gib(found, "backward", "master weights") == pytest.approx(3.55, rel=0.01)
    assert gib(found, "backward", "moments") == pytest.approx(7.09, rel=0.01)
    passing = tokens * (4 * 18944 + 4 * 3584) / GIB
    kept = gib(found, "backward", "activations", "recomputed layer") - passing
    assert kept == pytest.approx(activations, rel=0.1)
    assert gib(found, "backward") == pytest.approx(total, rel=0.1)
    assert gib(found, "rollout", "parameters") == pytest.approx(1.77, rel=0.01)
    assert gib(found, "rollout", "gradients", "master weights", "moments") == 0
    assert gib(found, "rollout", "engine weights") == pytest.approx(14.2, rel=0.01)
    # 99 GiB with the gradients, which do not wait there: they have been used.
    away = found.to_dict()["host"]["optimizer state"] / GIB + 8 * 1.77
    assert away == pytest.approx(99, rel=0.01)


@pytest.mark.parametrize(
    ("offload", "share", "least", "most"), [("true", 0.9, 18, 20), ("false", 0.6, 7, 8)]
)
def test_the_7b_kv_cache(offload: str, share: float, least: float, most: float) -> None:
    """18 to 20 GiB with phase offload, 7 to 8 without; 20 are 374k tokens."""
    found = plan_of(
        "8xa100-40gb/qwen2.5-7b",
        "loss.kl_coef=0.0",
        f"memory.offload_during_rollout={offload}",
        f"rollout.gpu_memory_share={share}",
        "rollout.tensor_parallel=1",
    )
    cache = gib(found, "rollout", "KV cache")
    assert found.fits
    assert 0.9 * least < cache < 1.1 * most
    assert found.kv_tokens == pytest.approx(374_000 * cache / 20, rel=0.01)


def test_without_phase_offload_the_recipe_does_not_fit() -> None:
    full = plan_of(
        "8xa100-40gb/qwen2.5-7b",
        "memory.offload_during_rollout=false",
        "rollout.gpu_memory_share=0.8",
    )
    assert "rollout needs" in full.advice


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_fits_its_machine(recipe: str) -> None:
    found = plan_of(recipe)
    assert found.problems == ()
    assert all(phase.total <= found.job.machine.usable for phase in found.phases)
    assert found.kv_tokens >= 8 * found.job.longest
    assert found.job.settings.policy.backend == ("local" if "lora" in recipe else "zero3")
    assert 0 < sum(found.seconds.values()) < 3600


def test_there_are_recipes_for_each_machine() -> None:
    assert {r.partition("/")[0] for r in RECIPES} == set(MACHINES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_choices_fit_and_are_as_fast_as_the_recipe(recipe: str) -> None:
    found = plan_of(recipe)
    again = plan_of(recipe, *(f"{k}={str(v).lower()}" for k, v in found.choices.items()))
    assert again.fits
    assert sum(again.seconds.values()) == pytest.approx(found.chosen_seconds)
    assert sum(again.seconds.values()) <= 1.05 * sum(found.seconds.values())


def test_a_32b_model_fits_eight_gpus_only_beside_a_large_host() -> None:
    settings = load_settings(
        "8xa100-40gb/qwen2.5-7b", model="qwen2.5-32b", overrides=["loss.kl_coef=0.0"]
    )
    found = plan(settings, outline("qwen2.5-32b"), A100_40GB.changed(["host_gib=2000"]))
    assert not found.fits
    assert "backward needs" in found.advice
    assert found.changes["memory.offload_optimizer"]
    assert not found.changes["memory.offload_during_rollout"]
    small = plan(settings, outline("qwen2.5-32b"), A100_40GB.changed(["host_gib=512"]))
    assert small.choices == {}
    assert "is enough: try --set lora.rank=64 or 16 GPUs of 40 GiB" in small.advice
    assert "\n" not in small.advice


def test_what_a_host_cannot_hold_is_said() -> None:
    recipe = "8xa100-40gb/qwen2.5-32b"
    found = plan_of(recipe, machine=A100_40GB.changed(["host_gib=900"]))
    assert found.problems == ("the host needs 960 of 900 GiB",)
    unsaved = plan_of(recipe, "checkpoint.every=0", machine=A100_40GB.changed(["host_gib=900"]))
    assert unsaved.fits


def test_what_a_host_holds() -> None:
    """Bytes per parameter: 12 of optimizer state, and as many while a checkpoint is written, with
    4 of a teacher that moves; the teacher itself; two sets of weights that are kept, in float32."""
    size = 7_615_616_512
    recipe = "8xa100-40gb/qwen2.5-7b"
    found = job_of(recipe, "reward.labels=teacher", "guard.on_collapse=stop")
    assert host_memory(found) == {
        "optimizer state": 12 * size,
        "a checkpoint's copy": 12 * size,
        "kept weights": 8 * size,
        "teacher": 4 * size,
    }
    moving = job_of(recipe, "reward.labels=teacher", "reward.teacher_decay=0.9")
    assert host_memory(moving)["a checkpoint's copy"] == (12 + 4) * size
    two_nodes = dataclasses.replace(found, machine=dataclasses.replace(found.machine, gpus=16))
    assert host_memory(two_nodes)["optimizer state"] == 12 * size // 2
    in_host = job_of(recipe, "memory.offload_during_rollout=false", "memory.offload_optimizer=true")
    groups = -(-size // 8 // 100_000_000)
    pinned = 8 * (2**31 + groups * 2**29)  # of 2 x 952 MB, and of 400 MB
    assert host_memory(in_host)["gradients"] == pinned


@pytest.mark.parametrize("recipe", [r for r in RECIPES if "32b" in r or "70b" in r])
def test_recipes_say_what_they_take_of_a_host(recipe: str) -> None:
    text = " ".join((RECIPE_FOLDER / f"{recipe}.toml").read_text().replace("#", " ").split())
    sizes = [round(size / GIB) for size in host_memory(job_of(recipe)).values()]
    total = sum(host_memory(job_of(recipe)).values()) / GIB
    assert re.findall(r"takes (\d+) GiB", text) == [f"{total:.0f}"]
    assert re.search(f"{sizes[0]} for the state, {sizes[1]} for gradients, and {sizes[2]} ", text)


def test_between_nodes_a_collective_waits_for_the_slower_link() -> None:
    """16 GPUs in two nodes: each lacks 15/16 of 32 GB, and each node a half, for 8 adapters."""
    job = job_of("16xh100-80gb/llama3.3-70b-instruct")
    for link, expected in ((50, 30 / 400), (5, 16 / 40)):
        slower = dataclasses.replace(job, machine=job.machine.changed([f"node_link_gb_s={link}"]))
        assert collective_seconds(slower, 32e9) == pytest.approx(expected)


def test_an_engine_stays_in_its_node() -> None:
    with pytest.raises(UserError, match=r"tensor_parallel = 16 does not divide 8 GPUs of a node"):
        plan_of("16xh100-80gb/llama3.3-70b-instruct", "rollout.tensor_parallel=16")


def test_an_optimizer_in_the_host_takes_its_bandwidth() -> None:
    """30 bytes per parameter and step at 200 GB/s; 2 of gradients per batch down, 2 of weights up
    at 20 GB/s, for an eighth of the parameters."""
    job = job_of("8xa100-40gb/qwen2.5-32b")
    size = job.shape.parameters
    expected = 8 * 30 * size / 200e9 + (10 + 8) * 2 * size / 8 / 20e9
    assert optimizer_seconds(job, updates=8, batches=10, parameters=size) == pytest.approx(expected)
    assert plan_of("8xa100-40gb/qwen2.5-32b").seconds["offload"] == 0


def test_an_engine_that_keeps_its_cache_whole_does_not_fit() -> None:
    found = plan_of(
        "8xa100-40gb/qwen3-8b", "rollout.engine=transformers", "rollout.tensor_parallel=1"
    )
    assert "rollout needs" in found.advice
    assert "try --set rollout.engine=vllm" in found.advice


def test_the_advice_makes_it_fit() -> None:
    recipe = "8xa100-40gb/qwen2.5-math-7b"
    large = plan_of(recipe, "memory.tokens_per_batch=65536", "memory.gradient_checkpointing=false")
    assert not large.fits
    sets = re.findall(r"--set (\S+)", large.advice)
    assert sets
    assert plan_of(recipe, *sets).fits


def test_only_zero3_takes_its_states_to_the_host() -> None:
    states = ("gradients", "master weights", "moments")
    for offload, held in (("true", 0.0), ("false", 14 * 1_543_714_304 / GIB)):
        change = f"memory.offload_during_rollout={offload}"
        found = plan_of("1x40gb/qwen2.5-math-1.5b", change)
        assert gib(found, "rollout", *states) == pytest.approx(held)
    with pytest.raises(UserError, match=r'offload_during_rollout = true: expected .* = "zero3"'):
        plan_of("1x40gb/qwen2.5-math-1.5b", "policy.backend=local")


def test_one_process_has_one_gpu() -> None:
    """As `ttrl train` would say."""
    with pytest.raises(UserError, match="holds the policy in one process, but 8 GPUs were given"):
        plan_of(
            "8xa100-40gb/qwen2.5-math-7b",
            "policy.backend=local",
            "memory.offload_during_rollout=false",
        )


def test_a_small_share_has_no_room_for_a_sequence() -> None:
    found = plan_of("8xa100-40gb/qwen2.5-math-7b", "rollout.gpu_memory_share=0.1")
    assert "leaves a KV cache of 0 tokens, fewer than one sequence of 3584" in found.advice


def test_training_speed_of_the_analytic_table() -> None:
    """7B at 30 % of the peak for 6 operations per parameter: 2.2k tokens per second and GPU."""
    found = plan_of("8xa100-40gb/qwen2.5-7b", "loss.kl_coef=0.0")
    tokens = 8 * 32 * (200 + 1536) / 8
    assert tokens / found.seconds["update"] == pytest.approx(2200, rel=0.1)


def test_engines_elsewhere_are_not_planned() -> None:
    with pytest.raises(UserError, match=r"placement = \"separate\" cannot be planned"):
        plan_of(
            "8xa100-40gb/qwen2.5-math-7b",
            "rollout.placement=separate",
            "rollout.tensor_parallel=1",
        )


def test_a_run_without_a_plan_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, where memory is logged beside what was planned."""
    memory = types.SimpleNamespace(total_memory=40 * GIB)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: memory)
    screen = io.StringIO()
    display = Display(Console(file=screen, width=200))
    settings = load_settings("tiny-arithmetic")
    found = planned_memory(settings, 1, display.note)
    job = plan(settings, load_bare_outline(settings.model), Machine(1, 40, usable_share=1.0))
    totals = {phase.name: phase.total / GIB for phase in job.phases}
    assert found["rollout"] == totals["rollout"]
    assert found["update"] == max(totals[name] for name in ("loss", "backward", "optimizer"))
    assert screen.getvalue() == ""
    apart = load_settings("tiny-arithmetic", overrides=["rollout.placement=separate"])
    assert planned_memory(apart, 1, display.note) == {}
    assert "no memory plan: rollout.placement" in screen.getvalue()


def test_tensor_parallel_must_divide() -> None:
    with pytest.raises(UserError, match="tensor_parallel = 3 does not divide 8 GPUs of a node, 28"):
        plan_of("8xa100-40gb/qwen2.5-math-7b", "rollout.tensor_parallel=3")


def test_assumptions_can_be_changed() -> None:
    machine = A100_40GB.changed(["tflops=989", "hbm_gb_s=3350"])
    assert (machine.tflops, machine.hbm_gb_s, machine.gpus) == (989, 3350, 8)
    for change, message in [
        ("tflop=1", "did you mean 'tflops'"),
        ("tflops=fast", "--machine 'tflops=fast': expected a number"),
        ("usable_share=5", "--machine usable_share=5: expected a number from 0.001 to 1"),
        ("gpus=2", "unknown assumption"),
        ("gpus_per_node=1.5", "gpus_per_node=1.5: expected a whole number"),
    ]:
        with pytest.raises(UserError, match=message):
            A100_40GB.changed([change])


@pytest.mark.parametrize(
    "change",
    [
        "usable_share=1e300", "usable_share=1e-300", "usable_share=5", "fragmentation=1e308",
        "prompt_tokens=1e308", "hbm_gb_s=1e-320", "decode_bandwidth=1e-300", "answer_share=100",
        "train_utilization=50", "context_gib=-1", "nccl_gib=inf", "tflops=nan", "layer_us=0",
    ],
)  # fmt: skip
def test_no_machine_has_such_numbers(change: str) -> None:
    with pytest.raises(UserError, match=r"expected a number from 0.001 to (1|1e\+06)$"):
        A100_40GB.changed([change])


@pytest.mark.parametrize("bound", [0.001, 1e6])
def test_the_bounds_of_a_machine_can_be_planned(bound: float) -> None:
    names = [f.name for f in dataclasses.fields(Machine) if f.name not in ("gpus", "memory_gib")]
    for name in names:
        value = min(bound, 1.0) if name in SHARES else bound
        if name == "gpus_per_node":
            value = max(8.0, bound)
        machine = A100_40GB.changed([f"{name}={value}"])
        found = plan_of("8xa100-40gb/qwen2.5-math-7b", machine=machine)
        json.dumps(found.to_dict(), allow_nan=False)
        show(found, Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("gpus", "memory", "message"),
    [
        (8, float("inf"), "--gpu-memory inf: expected a number from"),
        (8, 1e300, r"--gpu-memory 1e\+300: expected"),
        (8, 0, "--gpu-memory 0: expected"),
        (0, 40, "--gpus 0: expected"),
    ],
)
def test_no_machine_is_like_that(gpus: int, memory: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Machine(gpus, memory)


def test_the_remedy_asks_for_no_more_gpus_than_there_can_be() -> None:
    settings = load_settings(
        "8xa100-40gb/qwen2.5-7b", overrides=["memory.tokens_per_batch=9999999"]
    )
    machine = Machine(1_000_000, 0.1)
    assert "is enough" in plan(settings, outline("qwen2.5-32b"), machine).advice


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 0, "layer_types": None}, "num_hidden_layers = 0: expected 1 or"),
        ({"intermediate_size": 0}, "intermediate_size = 0: expected 1 or more"),
        ({"intermediate_size": -8}, "cannot load model.path = .* negative dimension -8"),
        ({"hidden_size": 0}, "cannot load model.path = "),
        ({"hidden_size": -64}, "cannot load model.path = "),
        ({"head_dim": 0}, "cannot load model.path = "),
        ({"max_position_embeddings": 0}, "max_position_embeddings = 0: expected 1 or more"),
        ({"max_position_embeddings": -1}, "max_position_embeddings = -1: expected 1 or more"),
        ({"num_key_value_heads": 5}, "num_key_value_heads = 5: expected a divisor of num_att"),
    ],
)
def test_models_of_absurd_sizes(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = json.loads((CONFIGS / "qwen2.5-math-1.5b.json").read_text())
    path = tmp_path / "absurd.json"
    path.write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=message):
        ModelShape.of(load_bare_outline(ModelSettings(path=str(path))))
