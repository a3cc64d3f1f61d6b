"""Adapters: what trains, what is pushed, and what the reference is."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tensors import weights
from tiny_models import (
    TEMPERATURE,
    TOKENIZER,
    answer_of,
    make_settings,
    near_samples,
    prompt_of,
    saved,
    tiny_model,
    update,
)
from torch.func import functional_call
from transformers import AutoModelForCausalLM, PreTrainedModel

from ttrl.learner.local import LocalModel
from ttrl.models import lora
from ttrl.models.packed_model import load_policy_model
from ttrl.models.packing import pack
from ttrl.rollout.engines.transformers_engine import TransformersEngine
from ttrl.settings import ModelSettings, Settings
from ttrl.types import TrainSample, UserError

RATE = 3e-3
LORA: dict[str, Any] = {"lora_rank": 3, "lora_alpha": 6.0, "grad_clip": 1e3}
SCALE = 2.0


@pytest.fixture(scope="module")
def samples(saved_model: ModelSettings) -> list[TrainSample]:
    return near_samples(load_policy_model(saved_model), off=0.0)[:6]


def lora_policy(start: ModelSettings, dtype: str = "float32", **changes: Any) -> LocalModel:
    settings = make_settings(model={"dtype": dtype}, update={**LORA, **changes})
    return LocalModel(load_policy_model(start, getattr(torch, dtype)), settings)


def adapters(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if "lora_" in n}


# ---------------------------------------------------------------------------------------------
# What trains


class Twin:
    """GRPO with plain W + scale·B·A in float64, by autograd, and torch's AdamW."""

    def __init__(self, model: PreTrainedModel, policy: LocalModel) -> None:
        self.model = model.double().requires_grad_(False)
        self.settings: Settings = policy.settings
        self.parts = {n: p.detach().double() for n, p in adapters(policy.model).items()}
        for part in self.parts.values():
            part.requires_grad_()
        self.optimizer = torch.optim.AdamW(
            self.parts.values(), lr=RATE, weight_decay=policy.settings.optimizer.weight_decay
        )

    def weights(self) -> dict[str, torch.Tensor]:
        found = dict(self.model.named_parameters())
        for name, a in self.parts.items():
            if ".lora_A." in name:
                b = self.parts[name.replace(".lora_A.", ".lora_B.")]
                plain = name.replace(".lora_A.default", "")
                found[plain] = found[plain] + SCALE * b @ a
        return found

    def update(self, samples: list[TrainSample]) -> float:
        self.optimizer.zero_grad()
        losses, tokens = [], sum(len(answer_of(s)) for s in samples)
        for sample in samples:
            ids_1T = torch.tensor([[*prompt_of(sample), *answer_of(sample)]])
            n = len(answer_of(sample))
            logits_TV = functional_call(self.model, self.weights(), (ids_1T,)).logits[0]
            logp_nV = (logits_TV[-n - 1 : -1] / 1.3).log_softmax(-1)
            logp_n = logp_nV.gather(1, torch.tensor(answer_of(sample))[:, None])[:, 0]
            ratio_n, a = (logp_n - torch.tensor(sample.logprobs)).exp(), sample.advantages[0]
            losses.append(-torch.minimum(ratio_n * a, ratio_n.clamp(0.8, 1.2) * a).sum() / tokens)
        loss = torch.stack(losses).sum()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def test_updates_are_those_of_a_hand_written_twin(
    saved_model: ModelSettings, samples: list[TrainSample]
) -> None:
    """Three of them, so that A has gradients too."""
    policy = lora_policy(saved_model)
    twin = Twin(AutoModelForCausalLM.from_pretrained(saved_model.path), policy)
    for _ in range(3):
        (result,) = update(policy, samples, RATE)
        assert result.loss == pytest.approx(twin.update(samples), abs=1e-5)
        for name, part in twin.parts.items():
            ours = policy.model.get_parameter(name).grad
            error = (ours - part.grad).abs().max()
            assert error <= 1e-3 * part.grad.abs().max() + 1e-9, name
    expected = twin.weights()
    for name, weight in policy.named_weights():
        assert (weight - expected[name]).abs().max() < 0.05 * RATE, name


def test_only_adapters_train(saved_model: ModelSettings, samples: list[TrainSample]) -> None:
    policy = lora_policy(saved_model, weight_decay=0.0)
    before = weights(policy.model)
    update(policy, samples, RATE)
    after = weights(policy.model)
    # As B starts at 0, A has no gradient yet.
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".lora_B." in name}
    assert {n for n, p in policy.model.named_parameters() if p.requires_grad} == set(
        adapters(policy.model)
    )
    # Two layers of seven linear layers each: all but the output layer.
    assert len(adapters(policy.model)) == 2 * 2 * 7
    assert {key.partition("/")[2] for key in policy.shards()} == set(adapters(policy.model))


def test_shares_go_to_another_policy(
    saved_model: ModelSettings, samples: list[TrainSample]
) -> None:
    first, second = lora_policy(saved_model), lora_policy(saved_model)
    update(first, samples, RATE)
    second.load_state(first.state())
    second.load_shards(first.shards())
    for policy in (first, second):
        update(policy, samples, RATE)
    pairs = zip(first.named_weights(), second.named_weights(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)


def test_adapters_start_from_the_seed_alone(saved_model: ModelSettings) -> None:
    torch.manual_seed(7)
    first = weights(lora_policy(saved_model).model)
    torch.manual_seed(8)
    second = weights(lora_policy(saved_model).model)
    assert all(torch.equal(t, second[n]) for n, t in first.items())


def test_gradient_checkpointing_gives_the_same(
    saved_model: ModelSettings, samples: list[TrainSample]
) -> None:
    """Although nothing that goes into the first layer has a gradient."""
    found = []
    for on in (False, True):
        policy = lora_policy(saved_model, gradient_checkpointing=on)
        update(policy, samples, RATE)
        found.append({n: p.grad for n, p in adapters(policy.model).items()})
    assert all((found[1][n] - g).abs().max() <= 1e-6 * g.abs().max() for n, g in found[0].items())
    assert max(g.abs().max() for g in found[0].values()) > 0


def test_named_targets(saved_model: ModelSettings) -> None:
    policy = lora_policy(saved_model, lora_targets=["q_proj", "down_proj"])
    layers = {name.split(".lora_")[0].split(".")[-1] for name in adapters(policy.model)}
    assert layers == {"q_proj", "down_proj"}


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["lm_head"], "names the output layer"),
        (
            ["nothing"],
            "no layer is called 'nothing'; expected .* down_proj, gate_proj, k_proj, o_proj",
        ),
        (["q_proj", "nosuch"], "no layer is called 'nosuch'"),
        (["q_proj", "proj"], "no layer is called 'proj'"),
        (["embed_tokens"], "names model.embed_tokens, of type Embedding; expected"),
        (["q_proj", "mlp"], "names model.layers.0.mlp, of type Qwen2MLP; expected"),
        ([""], "names the model, of type Qwen2ForCausalLM"),
        ([], "lora.targets = "),
    ],
)
def test_targets_that_cannot_be(targets: list[str], words: str, saved_model: ModelSettings) -> None:
    with pytest.raises(UserError, match=words):
        lora_policy(saved_model, lora_targets=targets)


def test_a_target_may_be_a_full_name(saved_model: ModelSettings) -> None:
    name = "model.layers.1.mlp.up_proj"
    policy = lora_policy(saved_model, lora_targets=[name, "layers.0.mlp.up_proj"])
    layers = {n.split(".lora_")[0] for n in adapters(policy.model)}
    assert layers == {name, "model.layers.0.mlp.up_proj"}


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"peft is not installed: bash scripts/setup\.sh lora"):
        lora.require_peft()


# ---------------------------------------------------------------------------------------------
# What is pushed


@pytest.mark.parametrize("tied", [False, True])
def test_pushed_weights_are_pefts_own_merge(
    tied: bool, samples: list[TrainSample], tmp_path_factory: pytest.TempPathFactory
) -> None:
    start = saved(tiny_model(tie_word_embeddings=tied), tmp_path_factory.mktemp("start"))
    policy = lora_policy(start)
    for _ in range(2):
        update(policy, samples, RATE)
    before = weights(policy.model)
    pushed = {n: t.detach().clone() for n, t in policy.named_weights()}
    assert all(torch.equal(t, before[n]) for n, t in weights(policy.model).items())

    plain = AutoModelForCausalLM.from_pretrained(start.path)
    names = [name for name, _ in plain.named_parameters()]
    config = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", exclude_modules=["lm_head"])
    peft = get_peft_model(plain, config)
    own = adapters(policy.model)
    loaded = 0
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_" in name:
                p.copy_(own[name.removeprefix("base_model.model.")])
                loaded += 1
    assert loaded == len(own)
    merged = dict(peft.merge_and_unload().named_parameters())
    assert list(pushed) == names == list(merged)
    for name, tensor in merged.items():
        assert (tensor - pushed[name]).abs().max() < 1e-6, name
    base = dict(AutoModelForCausalLM.from_pretrained(start.path).named_parameters())
    assert sum(not torch.equal(t, base[n]) for n, t in pushed.items()) == 14

    engine = TransformersEngine(tiny_model(seed=1, tie_word_embeddings=tied), TOKENIZER, 8)
    engine.load_weights(policy.named_weights())
    sample = samples[0]
    ids_1T = torch.tensor([[*prompt_of(sample), *answer_of(sample)]])
    logp_TV = (engine.model(ids_1T).logits[0] / 1.3).log_softmax(-1)
    n = len(answer_of(sample))
    expected = logp_TV[-n - 1 : -1].gather(1, torch.tensor(answer_of(sample))[:, None])[:, 0]
    own_n = torch.tensor(policy.logprobs([sample])[0])
    assert (own_n - expected).abs().max() < 1e-4


def test_bfloat16_base_with_float32_adapters(
    saved_model: ModelSettings, samples: list[TrainSample]
) -> None:
    policy = lora_policy(saved_model, "bfloat16", kl_coef=0.1)
    before = {n: p.detach().clone() for n, p in adapters(policy.model).items()}
    update(policy, samples, 1e-6)
    types = {("lora_" in n, p.dtype) for n, p in policy.model.named_parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}
    assert {t.dtype for _, t in policy.named_weights()} == {torch.bfloat16}
    # A step far below bfloat16's spacing moves B, which is where AdamW's first step is the rate.
    step = max((p - before[n]).abs().max().item() for n, p in adapters(policy.model).items())
    assert step == pytest.approx(1e-6, rel=0.05)


# ---------------------------------------------------------------------------------------------
# The reference


def test_the_reference_is_the_start_without_a_copy(
    saved_model: ModelSettings, samples: list[TrainSample]
) -> None:
    policy = lora_policy(saved_model, kl_coef=0.5)
    assert policy.reference is None
    (batch,) = pack(samples, [1.0] * len(samples), 1024)
    with torch.no_grad():
        start = LocalModel(load_policy_model(saved_model), make_settings())
        start_T = start.network(batch, temperature=TEMPERATURE).logp_T
    kl = []
    for _ in range(3):
        kl.append(update(policy, samples, RATE)[0].means["kl"])
        assert torch.equal(policy.reference_logp(batch), start_T)
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert 1e-6 < kl[1] < kl[2]
    with torch.no_grad():
        assert not torch.equal(policy.network(batch, temperature=TEMPERATURE).logp_T, start_T)


def test_an_error_inside_puts_the_adapters_back(saved_model: ModelSettings) -> None:
    policy = lora_policy(saved_model)
    model = copy.deepcopy(policy.model)
    with pytest.raises(ZeroDivisionError), lora.without_adapters(model):
        raise ZeroDivisionError
    layer = model.model.layers[0].mlp.up_proj
    assert layer.scaling == {"default": SCALE}
