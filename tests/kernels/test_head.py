"""FusedLMHead in the place of a transformers model's output layer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
)
from ttrl_kernels import FusedLMHead, LogProbs, PolicyLoss, linear_logprob, linear_policy_loss
from ttrl_kernels.loss_math import policy_loss_reference

T, V = 12, 67
SMALL = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS = {
    "untied": lambda: Qwen2Config(**SMALL, tie_word_embeddings=False),
    "tied": lambda: Qwen2Config(**SMALL, tie_word_embeddings=True),
    "bias": lambda: PhiConfig(**SMALL),
    "softcap": lambda: Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.5),
    "divided": lambda: GraniteConfig(**SMALL, logits_scaling=3.0),
    "multiplied": lambda: CohereConfig(**SMALL, logit_scale=0.3, tie_word_embeddings=False),
}
SCALES = {"divided": 1 / 3, "multiplied": 0.3}
IDS = torch.randint(V, (1, T + 1), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def loss_keywords() -> dict[str, Any]:
    """Of T tokens, of which two are dead and two have no advantage."""
    g = torch.Generator().manual_seed(1)
    advantages, weights = torch.randn(T, generator=g), torch.rand(T, generator=g)
    advantages[3:5], weights[7:9] = 0, 0
    return {
        "advantages_T": advantages,
        "token_weights_T": weights,
        "old_logp_T": -4 + 0.3 * torch.randn(T, generator=g),
        "temperature": 0.8,
        "entropy_coef": 0.1,
    }


def plain_model(name: str = "untied", dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[name]()).to(dtype)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model


def fused_model(name: str = "untied", dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    model = plain_model(name, dtype)
    FusedLMHead.replace(model)
    return model


def head_outputs(
    model: PreTrainedModel, targets: torch.Tensor | None = IDS[0, 1:], **keywords: Any
) -> Any:
    hidden = model.base_model(IDS[:, :-1]).last_hidden_state[0]
    return model.lm_head(hidden, targets, **keywords)


# --- in a model


@pytest.mark.parametrize("name", CONFIGS)
def test_log_probs_are_those_of_the_models_own_logits(name: str) -> None:
    model = fused_model(name)
    logits = model(IDS[:, :-1]).logits[0] / 0.8
    expected = logits.log_softmax(-1)
    out = head_outputs(model, temperature=0.8)
    assert type(out) is LogProbs
    torch.testing.assert_close(out.logp_T, expected.gather(1, IDS[0, 1:, None]).squeeze(1))
    torch.testing.assert_close(out.entropy_T, -(expected.exp() * expected).sum(-1))


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_every_gradient_are_those_of_plain_pytorch(
    name: str, loss_keywords: dict[str, Any]
) -> None:
    model, twin = fused_model(name), plain_model(name)
    result = head_outputs(model, **loss_keywords)
    assert type(result) is PolicyLoss
    hidden = twin.base_model(IDS[:, :-1]).last_hidden_state[0]
    expected = policy_loss_reference(
        hidden * SCALES.get(name, 1.0),
        twin.lm_head.weight,
        IDS[0, 1:],
        bias=twin.lm_head.bias,
        softcap=getattr(twin.config, "final_logit_softcapping", None),
        **loss_keywords,
    )
    torch.testing.assert_close(result.loss, expected.loss)
    result.loss.backward()
    expected.loss.backward()
    theirs = dict(twin.named_parameters())
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == (name in ("tied", "softcap"))
    for parameter, value in model.named_parameters():
        torch.testing.assert_close(value.grad, theirs[parameter].grad, msg=parameter)
        assert value.grad.abs().max() > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_replacing_changes_no_name_parameter_or_logit(name: str) -> None:
    model = plain_model(name).eval()
    head = model.get_output_embeddings()
    parameters, keys = dict(model.named_parameters()), list(model.state_dict())
    logits, tokens = model(IDS).logits, generate(model)
    assert FusedLMHead.replace(model) is model.lm_head is head
    assert type(head) is FusedLMHead
    assert list(model.state_dict()) == keys
    assert [*model.named_parameters()] == [*parameters.items()]
    assert all(p is parameters[n] for n, p in model.named_parameters())
    assert torch.equal(model(IDS).logits, logits) and torch.equal(generate(model), tokens)
    assert FusedLMHead.replace(model) is head


def generate(model: PreTrainedModel) -> torch.Tensor:
    return model.generate(IDS, max_new_tokens=5, do_sample=False)


@pytest.mark.parametrize("name", ["untied", "tied"])
def test_saving_and_loading(name: str, tmp_path: Path, loss_keywords: dict[str, Any]) -> None:
    model = fused_model(name)
    model.save_pretrained(tmp_path / "fused")
    plain_model(name).save_pretrained(tmp_path / "plain")
    ours, theirs = (load_file(tmp_path / x / "model.safetensors") for x in ("fused", "plain"))
    assert ours.keys() == theirs.keys() and ("lm_head.weight" in ours) == (name == "untied")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "fused", dtype=torch.float64)
    assert type(loaded.lm_head) is nn.Linear
    FusedLMHead.replace(loaded)
    again, once = (head_outputs(m, **loss_keywords).loss for m in (loaded, model))
    assert torch.equal(again, once)


def test_a_copy_of_the_model_has_its_own_head(loss_keywords: dict[str, Any]) -> None:
    model = fused_model("softcap")
    twin = copy.deepcopy(model)
    head_outputs(twin, **loss_keywords).loss.backward()
    assert type(twin.lm_head) is FusedLMHead and twin.lm_head.softcap == model.lm_head.softcap
    assert model.lm_head.weight.grad is None and twin.lm_head.weight.grad is not None


def test_a_compiled_model_has_the_same_loss_and_gradients(loss_keywords: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model = fused_model("tied", torch.float32)
    eager = head_outputs(model, **loss_keywords).loss
    expected = torch.autograd.grad(eager, list(model.parameters()))
    compiled = torch.compile(head_outputs, fullgraph=True, backend="aot_eager")
    loss = compiled(model, **loss_keywords).loss
    torch.testing.assert_close(loss, eager)
    for ours, theirs in zip(
        torch.autograd.grad(loss, list(model.parameters())), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


# --- hooks

USES = {
    "logits": {"targets": None},
    "log-probs": {},
    "loss": {"advantages_T": torch.ones(T), "token_weights_T": torch.ones(T)},
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_fire_once_however_the_head_is_used(use: str, when: str) -> None:
    model, fired = plain_model(), []
    if when == "before":
        FusedLMHead.replace(model)
    head = model.lm_head
    head.register_forward_pre_hook(lambda *_: fired.append("before forward"))
    head.register_forward_hook(lambda *_: fired.append("after forward"))
    head.register_full_backward_pre_hook(lambda *_: fired.append("before backward"))
    head.register_full_backward_hook(lambda *_: fired.append("after backward"))
    if when == "after":
        FusedLMHead.replace(model)
    out = head_outputs(model, **USES[use])
    (out if use == "logits" else out[0]).sum().backward()
    assert fired == ["before forward", "after forward", "before backward", "after backward"]


@pytest.mark.parametrize("use", ["log-probs", "loss"])
def test_trl_3368_the_weight_is_read_inside_the_hooks_only(use: str) -> None:
    """TRL read lm_head.weight beside the module: under ZeRO-3 it is empty there.

    The hooks here do what ZeRO-3 does: the weight exists during forward and backward alone.
    """
    model, whole = fused_model(), fused_model()
    head, weight = model.lm_head, model.lm_head.weight
    full = weight.data

    def gather(*_: Any) -> None:
        weight.data = full

    def release(*_: Any) -> None:
        weight.data = torch.empty(0, dtype=full.dtype)

    head.register_forward_pre_hook(gather)
    head.register_forward_hook(release)
    head.register_full_backward_pre_hook(gather)
    release()

    hidden = torch.randn(T, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match="a shard that was not gathered"):
        linear_logprob(hidden, weight, IDS[0, 1:])
    head_outputs(model, **USES[use])[0].sum().backward()
    head_outputs(whole, **USES[use])[0].sum().backward()
    assert torch.equal(weight.grad, whole.lm_head.weight.grad)
    assert weight.grad.abs().max() > 0


class LoRA(nn.Module):
    """As peft's LoRA layer: what the layer inside gives, plus a product of low rank."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Linear(base_layer.in_features, 2, bias=False, dtype=torch.float64)
        self.up = nn.Linear(2, base_layer.out_features, bias=False, dtype=torch.float64)

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result = self.base_layer(x, *args, **kwargs)
        return result + self.up(self.down(x)).to(result.dtype)


@pytest.mark.parametrize("use", ["log-probs", "loss"])
def test_lora_around_the_head_fails_instead_of_reading_the_base_weight(use: str) -> None:
    model = fused_model()
    model.lm_head = LoRA(model.lm_head)
    assert head_outputs(model, **USES["logits"]).shape == (T, V)
    with pytest.raises(AttributeError, match="dtype"):
        head_outputs(model, **USES[use])


def test_a_lora_layer_is_not_replaced() -> None:
    model = plain_model()
    model.lm_head = LoRA(model.lm_head)
    with pytest.raises(TypeError, match=r"Qwen2ForCausalLM is a test_head\.LoRA, expected a torch"):
        FusedLMHead.replace(model)


def test_logits_that_are_scaled_and_capped_are_refused() -> None:
    model = plain_model("softcap")
    model.config.logit_scale = 0.5
    with pytest.raises(TypeError, match=r"Gemma2ForCausalLM are scaled .* and capped .* of both"):
        FusedLMHead.replace(model)


# --- alone


def test_under_autocast_the_products_run_in_its_dtype(loss_keywords: dict[str, Any]) -> None:
    head = FusedLMHead(16, V)
    hidden = torch.randn(T, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours = head(hidden, IDS[0, 1:], **loss_keywords).loss
    x, w, b = (t.detach().bfloat16().requires_grad_() for t in (hidden, head.weight, head.bias))
    expected = linear_policy_loss(x, w, IDS[0, 1:], bias=b, **loss_keywords).loss
    assert torch.equal(ours, expected)
    ours.backward()
    expected.backward()
    for got, want in zip((hidden, head.weight, head.bias), (x, w, b), strict=True):
        assert torch.equal(got.grad, want.grad.float()) and got.grad.dtype == torch.float32


def test_without_autocast_dtypes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"weight_VH is torch\.float32"):
        FusedLMHead(16, V)(torch.randn(T, 16).bfloat16(), IDS[0, 1:])


def test_options_without_targets_are_refused() -> None:
    with pytest.raises(TypeError, match="temperature without targets"):
        FusedLMHead(16, V)(torch.randn(T, 16), temperature=0.7)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="clip_low"):  # a loss option, but no loss
        FusedLMHead(16, V)(torch.randn(T, 16), IDS[0, 1:], clip_low=0.1)
