"""A run that trains adapters, from end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compared_runs import differences
from rich.console import Console
from safetensors.torch import load_file, save_file
from small_run import Run, interrupted
from step_lines import step_lines
from transformers import AutoModelForCausalLM

from ttrl.learner.local import LocalModel
from ttrl.learner.trained_model import TrainedModel
from ttrl.models.pretrained import TINY_BASE
from ttrl.report.display import Display
from ttrl.run.export import export
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train
from ttrl.types import TrainSample, UserError

LORA = ("lora.rank=4", "loss.kl_coef=0.01", "optimizer.learning_rate=1e-3")


def test_a_run_with_adapters(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The saved model is an ordinary one, and gives the policy's log-probs."""
    seen: list[TrainedModel] = []
    hand_over = LocalModel.hand_over

    def watched(policy: LocalModel, take: Any) -> None:
        seen.append(policy)
        hand_over(policy, take)

    monkeypatch.setattr(LocalModel, "hand_over", watched)
    folder = run("run", LORA)
    policy = seen[-1]
    steps = step_lines(folder)
    assert all(s["mismatch/kl"] < 1e-6 and s["guard/mismatch"] == 0 for s in steps)
    # The second update of a step starts where the first one has gone.
    assert all(s["policy/sampler_kl"] > 2 * s["mismatch/kl"] for s in steps)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    base = AutoModelForCausalLM.from_pretrained(TINY_BASE)
    assert list(model.state_dict()) == list(base.state_dict())
    ids = [int(i) for i in torch.arange(40) % 20 + 5]
    with torch.no_grad():
        logp = [(m(torch.tensor([ids])).logits[0]).log_softmax(-1) for m in (model, base)]
    saved_n, base_n = (x[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0] for x in logp)
    sample = TrainSample.of_answer("", ids[:1], ids[1:], [0.0] * 39, advantage=0.0)
    own_n = torch.tensor(*policy.logprobs([sample]))
    assert policy.settings.rollout.temperature == 1.0
    assert (saved_n - own_n).abs().max() < 1e-4
    assert (base_n - own_n).abs().max() > 1e-2


def test_it_goes_on_bit_for_bit_and_a_checkpoint_is_exported_merged(
    run: Run, tmp_path: Path
) -> None:
    whole = run("whole", [*LORA, "checkpoint.every=1"])
    left = interrupted(whole, tmp_path / "left", step=1)
    settings = load_settings(str(whole / "config.toml"))
    train(settings, RunFolder(left), Display(Console(quiet=True)), resume=True)
    assert differences(whole, left) == set()
    shares = load_file(whole / "checkpoints" / "step_00002" / "rank_00000.safetensors")
    assert all(".lora_A." in name or ".lora_B." in name for name in shares)  # nothing else moved

    export(whole, tmp_path / "out", "newest", None)
    exported, saved = (
        (folder / "model.safetensors").read_bytes()
        for folder in (tmp_path / "out", whole / "model")
    )
    assert exported == saved
    export(whole, tmp_path / "first", 1, None)
    first = load_file(tmp_path / "first" / "model.safetensors")
    base, last = (load_file(p / "model.safetensors") for p in (TINY_BASE, whole / "model"))
    name = "model.layers.0.mlp.up_proj.weight"
    moved, rest = ((x[name] - first[name]).abs().max().item() for x in (base, last))
    assert moved > 1e-5 and rest > 1e-5


def test_a_checkpoint_of_another_model_or_other_adapters_is_not_exported(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run("run", [*LORA, "max_steps=1"])
    other = Path(shutil.copytree(TINY_BASE, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] *= 1.01
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with monkeypatch.context() as patch:
        patch.setattr("ttrl.models.pretrained.TINY_BASE", other)
        with pytest.raises(UserError, match=r"one of the weights of model\.path .* is not what"):
            export(folder, tmp_path / "out", "newest", None)
    shape = json.loads((other / "config.json").read_text())
    shape |= {"num_hidden_layers": 2, "layer_types": shape["layer_types"][:2]}
    (other / "config.json").write_text(json.dumps(shape))
    with monkeypatch.context() as patch:
        patch.setattr("ttrl.models.pretrained.TINY_BASE", other)
        with pytest.raises(UserError, match=r"holds other parameters than model\.path"):
            export(folder, tmp_path / "out", "newest", None)
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("rank = 4", "rank = 8"))
    with pytest.raises(UserError, match=r"saved by another run .*lora\.rank = 8 .was 4"):
        export(folder, tmp_path / "out", "newest", None)
    assert not (tmp_path / "out").exists()


def test_the_engine_is_compared_with_the_policy_in_every_step(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a limit below rounding, there is an alarm, in the metrics of every step."""
    folder = run("run", ["guard.sampler_kl=1e-30", "max_steps=2"])
    steps = step_lines(folder)
    assert [s["guard/mismatch"] for s in steps] == [1, 1]
    assert all(0 < s["mismatch/max_log_ratio"] < 1e-4 for s in steps)
    assert all(abs(s["mismatch/mean_log_ratio"]) < 1e-4 for s in steps)
