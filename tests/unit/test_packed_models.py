"""Whole models on packed sequences, against each sequence alone."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    all_logprobs,
    answer_of,
    make_settings,
    prompt_of,
    saved,
    tiny_model,
    train_samples,
    update,
)

from ttrl.learner.local import LocalModel
from ttrl.models.attention import packed_hidden_states
from ttrl.models.packed_model import load_policy_model, use_liger
from ttrl.models.packing import pack
from ttrl.types import PackedBatch, TrainSample, UserError

RIGHT = {
    "qwen2": {},
    "qwen2-tied": {"tie_word_embeddings": True},
    "llama": {},
    "llama-attention-dropout": {"attention_dropout": 0.5},
    "qwen3": {"head_dim": 8},
    "gpt2": {},  # dropout everywhere, by default
    "phi": {"resid_pdrop": 0.3},  # a bias in the output layer
    "mistral": {"sliding_window": 16},
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen2-window": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    "seed_oss": {"head_dim": 8, "attention_dropout": 0.3, "residual_dropout": 0.3},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.3, "layerdrop": 0.3},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "gemma2-final-softcap": {
        "head_dim": 8,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": 3.0,
    },
}


@pytest.mark.parametrize("name", RIGHT)
def test_packed_log_probs_are_the_models_own(name: str, tmp_path: Path) -> None:
    """In float32, with sequences longer than those of the check at loading, and than windows.

    Packing only changes the order of float32 sums: of logits around 10, in two layers.
    """
    plain = tiny_model(name.partition("-")[0], **RIGHT[name])
    model = load_policy_model(saved(plain, tmp_path))
    samples = train_samples([(20, 13), (1, 1), (7, 30), (3, 2)])
    (batch,) = pack(samples, [1.0] * 4, 1024)
    with torch.no_grad():
        hidden_RH = packed_hidden_states(
            model, batch.token_ids_R, batch.positions_R, batch.sequences
        )
        head = model.get_output_embeddings()
        ours = head(hidden_RH[batch.rows_T], batch.targets_T, temperature=0.6).logp_T
        for sample in samples:
            logp_nV = all_logprobs(plain, prompt_of(sample), answer_of(sample), 0.6)
            theirs = logp_nV.gather(1, torch.tensor(answer_of(sample)).unsqueeze(1)).flatten()
            found = [i for i in range(len(ours)) if _is_at(batch, i, sample)]
            assert len(found) == 1
            ours_n = ours[found[0] : found[0] + len(theirs)]
            torch.testing.assert_close(ours_n, theirs, rtol=0, atol=1e-4)


def _is_at(batch: PackedBatch, i: int, sample: TrainSample) -> bool:
    """Whether the completion of ``sample`` is predicted from row ``i`` on."""
    ids = list(answer_of(sample))
    return batch.targets_T[i : i + len(ids)].tolist() == ids


REFUSED = {
    "gemma2-attention-softcap": ({"head_dim": 8}, "its attention asks for softcap"),
    "hyperclovax": (
        {"logits_scaling": 0.25},
        r"the model's own .* left out here: .*logits_scaling",
    ),
    "stablelm": ({}, "do not hand sequences on"),
    "falcon": ({"num_kv_heads": 2}, "not go through transformers' AttentionInterface"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_packing_would_get_wrong_is_refused(name: str, tmp_path: Path) -> None:
    changes, reason = REFUSED[name]
    settings = saved(tiny_model(name.partition("-")[0], **changes), tmp_path)
    with pytest.raises(UserError, match=reason) as stop:
        load_policy_model(settings)
    assert "\n" not in str(stop.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_liger_decides_itself_what_it_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Gemma has no SwiGLU, a Nemotron no RMSNorm: as named arguments they are TypeErrors."""
    given = []

    def geglu_kind(
        geglu: bool = True,
        cross_entropy: bool = False,
        fused_linear_cross_entropy: bool = True,
        model: Any = None,
    ) -> None:
        given.append((geglu, cross_entropy, fused_linear_cross_entropy, model))

    patches = types.ModuleType("liger_kernel.transformers.monkey_patch")
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"gemma": geglu_kind}
    for part in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, patches.__name__, patches)
    model = types.SimpleNamespace(
        device=torch.device("cuda"), config=types.SimpleNamespace(model_type="gemma")
    )
    use_liger(model)
    assert given == [(True, False, False, model)]
    model.config.model_type = "gpt2"
    with pytest.raises(UserError, match="liger-kernel has none for models of the type 'gpt2'"):
        use_liger(model)


def test_ligers_kernels_are_refused_without_a_gpu(tmp_path: Path) -> None:
    settings = saved(tiny_model(), tmp_path)
    with pytest.raises(UserError, match=r"liger_kernels = true needs an NVIDIA GPU; unset it"):
        load_policy_model(settings, liger=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["qwen2", "llama", "qwen3"])
def test_ligers_kernels_give_the_same_gradients(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("liger_kernel")
    settings = saved(tiny_model(kind, **({"head_dim": 8} if kind == "qwen3" else {})), tmp_path)
    samples = train_samples([(20, 13), (1, 1), (7, 30), (3, 2)])
    grads = []
    for liger in (False, True):  # the replacements are global: the plain one goes first
        policy = LocalModel(load_policy_model(settings, liger=liger), make_settings())
        update(policy, samples, 0.0)
        grads.append({n: p.grad for n, p in policy.model.named_parameters()})
    for name, theirs in grads[0].items():
        scale = theirs.abs().max().item()
        torch.testing.assert_close(grads[1][name], theirs, rtol=0, atol=1e-3 * scale + 1e-7)
