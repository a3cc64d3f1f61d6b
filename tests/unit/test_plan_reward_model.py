"""A reward model that a run loads: what the plan counts of it, and when it is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from allocations import allocations
from command_line import call
from plans import CONFIGS, MACHINES, job_of, outline
from tiny_models import make_settings, tiny_model

from ttrl.plan import Machine, ModelShape, Plan, plan
from ttrl.plan.memory import Job
from ttrl.plan.reward_model import judge_of, reading, weights
from ttrl.plan.timeline import order
from ttrl.reward_models import make_reward_model
from ttrl.reward_models.likelihood import Likelihood
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError

RECIPE = "8xa100-40gb/qwen2.5-math-7b"
SMALL = "qwen2.5-math-1.5b"
"""What judges: a smaller model than the policy, of the same kind."""
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "head_dim": 16,
    "num_hidden_layers": 3,
    "max_position_embeddings": 4096,
}


def judged(name: str) -> tuple[str, str]:
    return "reward.estimator=verified", f"reward.options.verifier={name}"


def plan_with(name: str, *overrides: str) -> Plan:
    settings = load_settings(RECIPE, overrides=[*judged(name), *overrides])
    policy = outline("qwen2.5-math-7b")
    return plan(settings, policy, MACHINES["8xa100-40gb"], CONFIGS / f"{SMALL}.json")


def test_which_runs_load_one() -> None:
    def named(*overrides: str) -> str | None:
        return judge_of(load_settings("tiny-arithmetic", overrides=overrides))

    assert named() is None
    assert named(*judged("tiny-prm")) == "tiny-prm"
    assert named(*judged("qwen-prm:some/where")) == "qwen-prm:some/where"
    assert named(*judged("mine.py:check")) is None  # what that loads nobody knows


def test_it_is_there_from_the_first_answers_on() -> None:
    found = plan_with("qwen-prm:x", "reward_model.batch_size=1")
    shape = ModelShape.of(outline(SMALL))
    head = 0 if shape.tied else shape.head
    size = 2 * (shape.parameters - head)
    held = {phase.name: phase.items.get("reward model", 0) for phase in found.phases}
    before = {"load", "start", "verify"}
    assert {name for name, own in held.items() if own == 0} == before
    assert {own for name, own in held.items() if name not in before} == {size}
    (phase,) = (p for p in found.phases if p.name == "judge")
    assert phase.items["reading"] > 0 and "KV cache" in phase.items
    steps = order(found.job)
    assert steps.count("judge") == 2 and steps[steps.index("judge") - 1] == "rollout"
    assert "judge" not in order(job_of(RECIPE))


def test_it_judges_what_agents_with_policies_of_their_own_have_said() -> None:
    own = ("rollout.workflow=debate", "rollout.agents=2", "rollout.rounds=2")
    every = (*own, "rollout.policies=per_agent", "policy.trained_samples=64")
    steps = order(job_of(RECIPE, *judged("tiny-prm"), *every))
    before, after = zip(
        *[steps[i - 1 : i + 2 : 2] for i, e in enumerate(steps) if e == "judge"], strict=True
    )
    assert before == ("rollout", "rollout") and after == ("sleep", "sleep")


def test_a_plan_makes_room_for_it() -> None:
    machine, policy = MACHINES["8xa100-40gb"], outline("qwen2.5-math-7b")
    alone = plan(load_settings(RECIPE), policy, machine)
    settings = load_settings(RECIPE, overrides=judged("qwen-prm:x"))
    beside = plan(settings, policy, machine, CONFIGS / "qwen2.5-math-7b.json")
    share = "rollout.gpu_memory_share"
    assert alone.fits and any(problem.startswith("judge needs") for problem in beside.problems)
    assert beside.choices[share] < alone.choices[share]
    assert f"--set {share}=" in beside.advice
    many = plan_with("likelihood:x", "reward_model.batch_size=64")  # no share is small enough
    assert not many.choices and any(p.startswith("judge needs") for p in many.problems)


def job(kind: str, model: torch.nn.Module, batch: int, longest: int, dtype: str) -> Job:
    settings = make_settings(model={"dtype": dtype})
    changes = {
        "reward": {"estimator": "verified", "options": {"verifier": f"{kind}:x"}},
        "reward_model": {"batch_size": batch},
        "rollout": {"max_new_tokens": longest // 2},
        "data": {"max_prompt_tokens": longest - longest // 2},
    }
    settings = settings.model_copy(
        update={
            section: getattr(settings, section).model_copy(update=of)
            for section, of in changes.items()
        }
    )
    shape = ModelShape.of(model)  # type: ignore[arg-type]
    return Job(shape, settings, Machine(1, 40), shape)


def peak(call: Callable[[], object]) -> int:
    call()  # what is allocated once, on first use
    return allocations(call)[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "vocabulary"), [("qwen-prm", 281), ("likelihood", 900)])
@pytest.mark.parametrize(("batch", "longest"), [(4, 256), (8, 256), (4, 512)])
def test_reading_takes_what_torch_allocates(
    kind: str, vocabulary: int, dtype: str, batch: int, longest: int
) -> None:
    model = tiny_model("qwen2", **SIZES, vocab_size=vocabulary).to(getattr(torch, dtype)).eval()
    model.set_attn_implementation("sdpa")
    ids = torch.randint(0, vocabulary, (batch, longest))
    mask = torch.ones(batch, longest, dtype=torch.bool)
    mask[0, longest // 2 :] = False
    reader = object.__new__(Likelihood)
    reader._network = model

    @torch.inference_mode()
    def read() -> object:
        if kind == "likelihood":
            return reader.output(ids, mask)
        return model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)

    found = reading(job(kind, model, batch, longest, dtype))
    assert found["reading"] == pytest.approx(peak(read), rel=0.1)


def test_weights_are_those_that_are_loaded() -> None:
    settings = load_settings("tiny-arithmetic", overrides=judged("tiny-prm"))
    found = plan(settings, outline(SMALL), Machine(1, 40))
    (phase,) = (p for p in found.phases if p.name == "judge")
    model = make_reward_model("tiny-prm", settings)
    assert isinstance(model, Likelihood)
    held = {p.data_ptr(): p.nbytes for p in model._network.parameters()}
    assert phase.items["reward model"] == sum(held.values())


def test_what_writes_has_a_cache() -> None:
    model = tiny_model("qwen2", **SIZES)
    own = job("generative", model, 4, 256, "bfloat16")
    (kept,) = (size for name, size in reading(own).items() if name == "reward model's cache")
    shape = own.shape
    cache = 4 * (256 + 1024) * shape.layers * shape.key * 2 * 4  # keys and values, in float32
    assert kept == cache + 4 * 3 * 4 * shape.vocabulary
    assert weights(replace(own, judge=None)) == reading(replace(own, judge=None)) == {}


def test_a_config_that_is_not_used_or_cannot_be_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = str(CONFIGS / "qwen2.5-math-7b.json")
    policy = ("plan", RECIPE, "--gpus", "8", "--model-config", config)
    own = ("--reward-model-config", str(CONFIGS / f"{SMALL}.json"))
    code, _, err = call(capsys, monkeypatch, *policy, *own)
    assert (
        code == 2
        and "this run loads no reward model that is known; expected reward.estimator" in err
    )
    sets = [word for setting in judged("qwen-prm:x") for word in ("--set", setting)]
    code, out, _ = call(capsys, monkeypatch, *policy, *own, *sets)
    assert code in (0, 1) and "reward model" in out
    code, _, err = call(capsys, monkeypatch, *policy, *own[:1], str(tmp_path / "no"), *sets)
    assert code == 2 and "--reward-model-config" in err and "there is no such file" in err
    with pytest.raises(UserError, match=r"reward model 'qwen-prm:.*--reward-model-config FILE"):
        plan(
            load_settings(RECIPE, overrides=judged(f"qwen-prm:{tmp_path}")),
            outline("qwen2.5-math-7b"),
            MACHINES["8xa100-40gb"],
        )
