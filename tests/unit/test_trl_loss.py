"""Our loss inside TRL's GRPOTrainer, against TRL's own on the same batch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from ttrl.data.arithmetic import question_rows
from ttrl.integrations.trl import majority_reward
from ttrl.integrations.trl_loss import FusedLossMixin
from ttrl.models.pretrained import TINY_BASE
from ttrl.types import UserError

trl = pytest.importorskip("trl", reason="TRL is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's, of the versions that it knows


class FusedTrainer(FusedLossMixin, trl.GRPOTrainer):  # type: ignore[misc]
    """What a user writes."""


def made(folder: Path, kind: Any = FusedTrainer, model: Any = None, **config: Any) -> Any:
    """A trainer of the tiny model."""
    if model is None:
        model = AutoModelForCausalLM.from_pretrained(TINY_BASE, dtype=torch.float32)
    return kind(
        model,
        majority_reward(4),
        trl.GRPOConfig(
            **{
                "output_dir": str(folder),
                "num_generations": 4,
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 2,
                "max_completion_length": 12,
                "max_steps": 2,
                "learning_rate": 1e-3,
                "logging_steps": 1,
                "gradient_checkpointing": False,
                "report_to": "none",
                "save_strategy": "no",
                "use_cpu": True,
                "bf16": False,
                "disable_tqdm": True,
                **config,
            }
        ),
        Dataset.from_list(
            [
                {"prompt": [{"role": "user", "content": row["prompt"]}]}
                for row in question_rows("train")[:16]
            ]
        ),
        processing_class=AutoTokenizer.from_pretrained(TINY_BASE),
    )


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One trainer, in float64, whose settings the tests change and put back."""
    found = made(tmp_path_factory.mktemp("trl"))
    found.model.double().train()
    found.current_gradient_accumulation_steps = 3  # and 2 steps per generation
    return found


@pytest.fixture
def changed(trainer: Any) -> Iterator[Any]:
    """`changed(beta=0.1)`: the trainer with settings of its configuration as if they were so."""
    before, args = dict(vars(trainer)), dict(vars(trainer.args))

    def change(**settings: Any) -> Any:
        for name, value in settings.items():
            setattr(trainer.args, name, value)
            setattr(trainer, {"epsilon": "epsilon_low"}.get(name, name), value)
        return trainer

    yield change
    vars(trainer).clear()
    vars(trainer).update(before)
    vars(trainer.args).clear()
    vars(trainer.args).update(args)


def batch(*, off_policy: bool = True) -> dict[str, Any]:
    """Five sequences of a prompt and up to six tokens; one is masked whole, one has advantage 0."""
    g = torch.Generator().manual_seed(3)
    lengths = torch.tensor([6, 3, 5, 0, 4])
    float64 = {"generator": g, "dtype": torch.float64}
    to_ref, to_old = torch.randn(2, 5, 6, **float64) * 0.4
    to_old[1].abs_()  # the policy has left behind what is worse than its group
    to_old[4] = -0.6 - to_old[4].abs()  # or still likes it, beyond every clip
    return {
        "prompt_ids": torch.randint(5, 30, (5, 3), generator=g),
        "prompt_mask": torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1], [1, 1, 1]]),
        "completion_ids": torch.randint(5, 30, (5, 6), generator=g),
        "completion_mask": (torch.arange(6) < lengths[:, None]).long(),
        "tool_mask": torch.ones(5, 6, dtype=torch.long).index_fill(1, torch.tensor([1]), 0),
        "advantages": torch.tensor([1.5, -0.7, 0.0, 2.0, -1.2], dtype=torch.float64),
        "num_items_in_batch": torch.tensor(23),
        "importance_sampling_ratio": torch.rand(5, 6, **float64) * 2,
        "to_ref": to_ref,
        "to_old": to_old if off_policy else None,
    }


def computed(trainer: Any, kind: type, inputs: dict[str, Any]) -> tuple[float, Any, dict[str, Any]]:
    """Loss, gradients and metrics of a batch, by the method of ``kind``."""
    trainer._metrics["train"].clear()
    trainer.model.zero_grad()
    loss = kind._compute_loss(trainer, trainer.model, inputs)
    loss.backward()
    grads = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    return loss.item(), grads, dict(trainer._metrics["train"])


def compare(trainer: Any, inputs: dict[str, Any]) -> None:
    """Loss, every gradient and every metric are TRL's own, whose log-probs are in float32."""
    with torch.no_grad():
        logp_BC, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
            logits_to_keep=6,
        )
    inputs["ref_per_token_logps"] = logp_BC + inputs["to_ref"]
    if inputs["to_old"] is not None:  # an older policy
        inputs["old_per_token_logps"] = logp_BC + inputs["to_old"]
    loss, grads, metrics = computed(trainer, type(trainer), inputs)
    their_loss, their_grads, their_metrics = computed(trainer, trl.GRPOTrainer, inputs)
    assert their_loss != 0 or not inputs["advantages"].any()
    assert loss == pytest.approx(their_loss, rel=1e-5, abs=1e-6)
    assert grads.keys() == their_grads.keys() and len(grads) > 5
    largest = max(grad.abs().max().item() for grad in their_grads.values())
    assert largest > 1e-4
    for name, grad in grads.items():
        torch.testing.assert_close(grad, their_grads[name], rtol=0, atol=1e-5 * largest)
    assert metrics.keys() == their_metrics.keys() and "entropy" in metrics
    for name, values in metrics.items():
        assert values == pytest.approx(their_metrics[name], rel=1e-5, abs=1e-7, nan_ok=True), name


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo"])
def test_each_loss_type(changed: Any, loss_type: str, off_policy: bool) -> None:
    high = 1.3 if loss_type == "cispo" else 0.28
    compare(changed(loss_type=loss_type, epsilon_high=high), batch(off_policy=off_policy))


@pytest.mark.parametrize(
    "settings",
    [
        {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 0.05},
        {"importance_sampling_level": "sequence", "loss_type": "luspo"},
        {"importance_sampling_level": "sequence", "loss_type": "cispo", "epsilon_high": 1.1},
        {"beta": 0.2},
        {"beta": 0.2, "use_bias_correction_kl": False, "loss_type": "dr_grpo"},
        {
            "beta": 0.2,
            "use_bias_correction_kl": False,
            "importance_sampling_level": "sequence",
            "loss_type": "grpo",
        },
        {"delta": 1.5, "epsilon": 0.1, "epsilon_high": 0.1},
        {"off_policy_mask_threshold": 0.05, "loss_type": "grpo"},
        {"use_vllm": True},
        {"use_vllm": True, "beta": 0.2, "loss_type": "cispo", "epsilon_high": 1.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("off_policy", [False, True])
def test_other_settings(changed: Any, settings: dict[str, Any], off_policy: bool) -> None:
    compare(changed(**settings), batch(off_policy=off_policy))


def test_another_temperature(tmp_path: Path) -> None:
    found = made(tmp_path, temperature=0.7)
    found.model.double().train()
    found.current_gradient_accumulation_steps = 1
    compare(found, batch())


def test_advantages_of_tokens(changed: Any) -> None:
    inputs = batch()
    inputs["advantages"] = inputs["advantages"][:, None] * torch.linspace(0.5, 1.5, 6)
    compare(changed(), inputs)


def test_evaluation(changed: Any) -> None:
    trainer, inputs = changed(loss_type="grpo"), batch(off_policy=False)
    trainer.model.eval()
    with torch.no_grad():
        ours = trainer._compute_loss(trainer.model, inputs).item()
        theirs = trl.GRPOTrainer._compute_loss(trainer, trainer.model, inputs).item()
    trainer.model.train()
    assert ours == pytest.approx(theirs, rel=1e-6) and ours != 0


def test_the_model_is_called_once(changed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's metrics come from our scores: its own forward, and its logits, are not computed."""
    trainer = changed()
    calls = []
    monkeypatch.setattr(
        trainer.model.base_model,
        "forward",
        lambda *args, _real=trainer.model.base_model.forward, **kw: (
            calls.append(1) or _real(*args, **kw)
        ),
    )
    trainer._compute_loss(trainer.model, batch(off_policy=False))
    assert calls == [1]


def trained(folder: Path, kind: Any) -> tuple[Any, list[dict[str, float]]]:
    """A model, and its logs, after two rollouts of two updates each."""
    trainer = made(
        folder,
        kind,
        num_iterations=2,
        max_steps=4,
        max_completion_length=80,
        gradient_accumulation_steps=1,
        per_device_train_batch_size=16,
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return trainer.model, logs


def test_a_run_is_that_of_trl(tmp_path: Path) -> None:
    """Several updates of each rollout: the old policy's log-probs are TRL's."""
    ours, logs = trained(tmp_path / "ours", FusedTrainer)
    theirs, their_logs = trained(tmp_path / "theirs", trl.GRPOTrainer)
    assert [log.keys() for log in logs] == [log.keys() for log in their_logs] and len(logs) == 4
    for log, their_log in zip(logs, their_logs, strict=True):
        for name in log.keys() - {"step_time"}:
            assert log[name] == pytest.approx(their_log[name], rel=1e-3, abs=1e-5), name
    assert all(log["grad_norm"] > 0.01 for log in logs)
    start = AutoModelForCausalLM.from_pretrained(TINY_BASE, dtype=torch.float32).state_dict()
    for name, weight in ours.state_dict().items():
        moved = (weight - start[name]).norm()
        assert (weight - theirs.state_dict()[name]).norm() <= 0.01 * moved, name
    assert moved > 0.01


def test_lora(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = AutoModelForCausalLM.from_pretrained(TINY_BASE, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    found = made(tmp_path, model=adapted)
    found.model.double().train()
    for name, weight in found.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
    found.current_gradient_accumulation_steps = 1
    compare(found, batch())


def test_the_example_of_the_page(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "other_trainers.md").read_text(encoding="utf-8")
    (code,) = (
        c for c in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "GRPOTrainer" in c
    )
    given = made(tmp_path, num_generations=8, per_device_train_batch_size=8, max_steps=1)
    rows = given.train_dataset
    names: dict[str, Any] = {"model": str(TINY_BASE), "args": given.args, "rows": rows}
    exec(code, names)
    assert issubclass(names["Trainer"], FusedLossMixin)
    assert names["trainer"].state.global_step == 1


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"loss_type": "vespo"}, "loss_type = 'vespo' is none of ours"),
        ({"loss_type": "sapo", "sapo_temperature_neg": 2.0}, "ours are the paper's"),
        ({"loss_type": "cispo", "epsilon_high": 5.0, "delta": 2.0}, "delta has no meaning"),
        ({"delta": 1.1}, "not above 1 [+] epsilon_high"),
        ({"importance_sampling_level": "sequence", "beta": 0.1}, "use_bias_correction_kl"),
        ({"top_entropy_quantile": 0.2}, "all entropies before the loss"),
        ({"entropy_coef": 0.1}, "entropy bonus"),
        ({"use_adaptive_entropy": True}, "entropy bonus"),
    ],
    ids=str,
)
def test_what_is_not_known_is_refused(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"{reason}.*leave the mixin out"):
        made(tmp_path, **config)


def test_another_trl_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttrl.integrations.trl_loss.version", lambda package: "1.17.0")
    with pytest.raises(UserError, match=r"TRL is 1\.17\.0, expected 1\.16"):
        made(tmp_path)


def test_prompt_learning_is_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = AutoModelForCausalLM.from_pretrained(TINY_BASE, dtype=torch.float32)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(UserError, match="before the prompt"):
        made(tmp_path, model=peft.get_peft_model(model, config))
