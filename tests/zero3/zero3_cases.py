"""What both sides compute: the ranks under DeepSpeed, and one process without it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from python_process import run_python
from safetensors.torch import load_file, save_file
from tiny_models import (
    VOCABULARY,
    answer_of,
    make_settings,
    near_samples,
    read_sample,
    saved,
    tiny_model,
    worth,
)

from ttrl.learner.local import LocalModel
from ttrl.learner.policy_objective import PolicyObjective
from ttrl.learner.trained_model import TrainedModel
from ttrl.models.packed_model import load_policy_model
from ttrl.settings import ModelSettings, Settings
from ttrl.types import TrainSample, UpdateResult
from ttrl.types.top_logprobs import TopLogprobs

RATES = (3e-4, 1e-4)
"""Of the rollouts: one, or two of a case in `TWICE`."""

CASES: dict[str, dict[str, Any]] = {
    "token_mean": {},
    "sequence_mean": {"aggregation": "sequence_mean"},
    "constant": {"aggregation": "constant"},
    "small-batches": {"tokens_per_batch": 40},
    "small-batches-sequence_mean": {"tokens_per_batch": 40, "aggregation": "sequence_mean"},
    "small-batches-constant": {"tokens_per_batch": 40, "aggregation": "constant"},
    "other-order": {"sequences_per_update": 16},
    "one-sequence": {},
    "skipped": {"tokens_per_batch": 40},
    "kl": {"kl_coef": 0.5},
    "entropy": {"entropy_coef": 0.3},
    "dual-clip": {"dual_clip": 1.5, "clip_low": 0.1, "clip_high": 0.5},
    "grad-clip": {"grad_clip": 0.02},
    "checkpointing": {"gradient_checkpointing": True, "kl_coef": 0.2},
    "tied": {},
    "window": {},
    "offload-optimizer": {"offload_optimizer": True, "tokens_per_batch": 40},
    "old-policy": {"old_logprobs": "policy", "tokens_per_batch": 40},
    "truncate": {
        "old_logprobs": "policy",
        "sampler_correction": "truncate",
        "sampler_ratio_cap": 1.5,
    },
    "mask": {"old_logprobs": "policy", "sampler_correction": "mask", "tokens_per_batch": 40},
    "gmpo": {"loss_policy": "gmpo", "aggregation": "sequence_mean", "tokens_per_batch": 40},
    "gspo": {"ratio_level": "sequence", "clip_low": 0.05, "clip_high": 0.05},
    "dppo-tv": {"loss_policy": "dppo_tv", "clip_low": 1e-4, "clip_high": 1e-4},
    "off-policy-mask": {"off_policy_mask": 0.1, "tokens_per_batch": 40},
    "kl-corrected": {"kl_coef": 0.5, "kl_estimator": "k3+", "kl_bias_correction": True},
    "entropy-mask": {"entropy_mask": 0.3, "tokens_per_batch": 40},
    "clip-cov": {"covariance": "clip", "covariance_share": 0.2, "covariance_bounds": [0.1, 3.0]},
    "kl-cov": {
        "loss_policy": "none",
        "covariance": "kl",
        "covariance_share": 0.1,
        "tokens_per_batch": 40,
    },
    "sequence-correction": {
        "old_logprobs": "policy",
        "sampler_correction": "truncate",
        "sampler_level": "sequence_product",
        "sampler_normalize": True,
        "sampler_rejection": "sequence_mean",
        "sampler_rejection_kl": "k1",
        "sampler_rejection_bound": 0.5,
        "tokens_per_batch": 40,
    },
    "adaptive-entropy": {"entropy_target": 10.0, "entropy_coef_step": 0.1, "tokens_per_batch": 40},
    "few-tokens": {
        "kl_coef": 0.3,
        "entropy_coef": 0.1,
        "old_logprobs": "policy",
        "tokens_per_batch": 40,
    },
    "lora": {"lora_rank": 3, "lora_alpha": 6.0},
    "lora-kl": {"lora_rank": 4, "kl_coef": 0.3, "gradient_checkpointing": True},
    # No clip: rounding would put tokens on its other side.
    "bfloat16": {"kl_coef": 0.1, "clip_low": 0.99, "clip_high": 1e3},
}
"""Changed settings of the update; everything else about a case follows from its name."""

TWICE = (
    "token_mean",
    "skipped",
    "grad-clip",
    "offload-optimizer",
    "old-policy",
    "adaptive-entropy",
    "lora",
    "bfloat16",
)
"""Cases that train on a second rollout, at another rate, with what the first one has left."""

STARTS: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    # In one of its layers; most sequences are longer.
    "window": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
}
"""Models that cases begin with: that of their name, or "untied"."""

OTHERS: dict[str, dict[str, Any]] = {
    # Attention that the packed one leaves out.
    "gemma2": {"head_dim": 8},
    # Two rotary tables and a factor of the embedding that are in no file.
    "gemma3_text": {"head_dim": 8},
    # Experts that lie one by one in the files.
    "qwen3_moe": {
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 2,
        "head_dim": 8,
    },
}
"""Kinds of models that are loaded too, in `prepare`'s folder."""


def cases_of(ranks: int) -> list[str]:
    """Two ranks compute all cases; one and four those up to "skipped", about how work is split."""
    names = list(CASES)
    return names if ranks == 2 else names[: names.index("skipped") + 1]


def away_cases(ranks: int) -> list[str]:
    """What leaves during a rollout is of the types, and trained weights or adapters, of these; how
    many ranks share it says nothing but how much it is."""
    return ["token_mean", "bfloat16", "lora"] if ranks == 2 else ["token_mean"]


def case_settings(case: str) -> Settings:
    """Three optimizer steps per rollout, of four, four and two sequences."""
    dtype = "bfloat16" if case == "bfloat16" else "float32"
    update = {"sequences_per_update": 4, "grad_clip": 1e3, **CASES.get(case, {})}
    return make_settings(update, model={"dtype": dtype})


def case_samples(case: str, samples: list[TrainSample]) -> list[TrainSample]:
    """What a case trains on."""
    if case == "one-sequence":
        return samples[:1]
    if case == "skipped":  # and one optimizer step that is not taken at all
        weightless = [replace(s, weight=0.0) if i in (2, 8) else s for i, s in enumerate(samples)]
        return [worth(s, 0.0) if i in (0, 9) else s for i, s in enumerate(weightless)]
    if case == "few-tokens":  # but of some answers
        return [
            s if i % 4 == 3 else replace(s, support=few_tokens(s)) for i, s in enumerate(samples)
        ]
    return samples


def few_tokens(sample: TrainSample) -> TopLogprobs:
    """Supports of one to five tokens, the sampled one among them."""
    return TopLogprobs.of(
        (
            ([(token + 7 * i) % VOCABULARY for i in range(1 + token % 5)], [-1.0] * (1 + token % 5))
            for token in answer_of(sample)
        ),
        whole=True,
    )


def other_order(samples: list[TrainSample]) -> list[TrainSample]:
    """The same samples; sorted another way, they are also packed another way."""
    return [samples[i] for i in (6, 2, 9, 0, 4, 8, 1, 7, 3, 5)]


def case_model(case: str, folder: Path) -> ModelSettings:
    """The start of a case, in `prepare`'s folder."""
    return ModelSettings(path=str(folder / (case if case in STARTS else "untied")))


def all_updates(case: str, policy: TrainedModel, samples: list[TrainSample]) -> list[UpdateResult]:
    """All updates of a case."""
    objective = PolicyObjective.of(policy.settings, policy)
    rates = RATES if case in TWICE else RATES[:1]
    return [result for rate in rates for result in policy.update(samples, objective, rate)]


def local_policy(case: str, folder: Path) -> LocalModel:
    """The policy of a case in one process, without DeepSpeed."""
    return LocalModel(load_policy_model(case_model(case, folder)), case_settings(case))


def prepare(folder: Path) -> None:
    """Models and samples of all cases; the ratios lie between 0.3 and 3."""
    for name, changes in STARTS.items():
        saved(tiny_model(**changes), folder / name)
    for kind, changes in OTHERS.items():
        saved(tiny_model(kind, **changes), folder / kind)
    saved(tiny_model(), folder / "lacking")
    weights = load_file(folder / "lacking" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "lacking" / "model.safetensors", {"format": "pt"})
    samples = near_samples(load_policy_model(case_model("token_mean", folder)))
    samples[3] = replace(samples[3], weight=2.5)
    (folder / "samples.json").write_text(json.dumps([asdict(s) for s in samples]))


def output_of(script: str, folder: Path, ranks: int) -> Path:
    """Start a script of this folder on so many ranks; what it has written, without the suffix."""
    output = folder / f"{script}_{ranks}"
    path = Path(__file__).with_name(f"{script}.py")
    done = run_python(str(path), str(folder), str(output), ranks=ranks)
    assert done.returncode == 0, done.stderr[-4000:]
    return output


def read_samples(folder: Path) -> list[TrainSample]:
    """Those of `prepare`."""
    rows = json.loads((folder / "samples.json").read_text())
    return [read_sample(row) for row in rows]


class Seen(NamedTuple):
    """What ``zero3_facts.py`` has seen."""

    facts: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def of(self, case: str, kind: str) -> dict[str, torch.Tensor]:
        """A case's tensors of one kind, by parameter."""
        prefix = f"{case}/{kind}/"
        return {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}
