"""Tiny models with random weights, and the settings and samples that go with them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ttrl.learner.local import LocalModel
from ttrl.learner.policy_objective import PolicyObjective
from ttrl.learner.trained_model import TrainedModel
from ttrl.settings import ModelSettings, Settings
from ttrl.types import Question, TrainSample, UpdateResult

TOKENIZER = tiny_tokenizer()
VOCABULARY = len(TOKENIZER)

STOPS = list(range(10, 40))
"""End-of-sequence tokens: so many that completions of 20 tokens end at every length."""

TEMPERATURE, MAX_NEW_TOKENS = 1.3, 16
"""Of the rollouts that `make_settings` says."""

LENGTHS = [(3, 7), (12, 1), (1, 16), (9, 4), (5, 5), (2, 12), (24, 2), (1, 1), (8, 8), (4, 3)]
"""Prompt and completion tokens of `near_samples`."""


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen2-tied": {"tie_word_embeddings": True},
    "llama": {},
    "qwen3": {"head_dim": 8},
    "gpt2": {},  # learned positions: padding that shifted them would show
    "mistral": {"sliding_window": 4},  # its cache forgets
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
"""Changes to the configuration of `tiny_model`, by its kind and what is special after a dash."""


def tiny_model(kind: str = "qwen2", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A causal LM with float32 weights drawn from ``seed``, large enough that its next-token
    distributions are far from uniform; ``changes`` go into its configuration."""
    config = AutoConfig.for_model(
        kind,
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.4,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            **changes,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero in a new model: a forgotten bias would not show
                torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def saved(model: PreTrainedModel, folder: Path) -> ModelSettings:
    """Settings that load ``model``, from ``folder``."""
    model.save_pretrained(folder)
    return ModelSettings(path=str(folder), dtype="float32")


OF_THE_UPDATE = ("policy", "loss", "optimizer", "memory", "lora")
"""Sections whose fields `make_settings` finds by itself."""


def make_settings(
    update: Mapping[str, Any] | None = None, **sections: Mapping[str, Any]
) -> Settings:
    """Make the settings of a tiny run with these changes.

    Args:
        update: by the names of fields in the sections `OF_THE_UPDATE`; ``lora_rank`` and
            ``loss_policy`` are ``rank`` in "lora" and ``policy`` in "loss".
        sections: the same, section by section.
    """
    tables: dict[str, Any] = {
        "name": "test",
        "model": {"path": "unused", "dtype": "float32"},
        "data": {"train": "unused.jsonl", "max_prompt_tokens": 24},
        "rollout": {
            "questions_per_step": 4,
            "votes": 4,
            "temperature": TEMPERATURE,
            "max_new_tokens": MAX_NEW_TOKENS,
        },
        "policy": {
            "trained_samples": 4,
            "sequences_per_update": 16,
        },
        "memory": {"tokens_per_batch": 1024},
        "optimizer": {"learning_rate": 1e-3},
    }
    for name, changes in sections.items():
        tables[name] = {**tables.get(name, {}), **changes}
    for name, value in (update or {}).items():
        (at,) = (
            (section, field)
            for section in OF_THE_UPDATE
            for field in type(Settings.model_fields[section].default).model_fields
            if name == (f"{section}_{field}" if section == "lora" or field == "policy" else field)
        )
        tables.setdefault(at[0], {})[at[1]] = value
    return Settings.model_validate(tables)


def engine_settings(model: ModelSettings, engines: int = 0) -> Settings:
    """Settings of so many engines, each in a process of its own; 0: of one in this process."""
    placement = {"placement": "separate", "engines": engines} if engines else {}
    rollout = {**placement, "batch_size": 12, "stuck_after_s": 60.0}
    return make_settings(model={"path": model.path}, rollout=rollout)


def tiny_questions(*lengths: int) -> list[Question]:
    """Random prompts of so many tokens."""
    return [
        Question(f"q{i}", "unused", tuple(ids.tolist()))
        for i, length in enumerate(lengths)
        for ids in [
            torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(i))
        ]
    ]


def train_samples(
    lengths: list[tuple[int, int]], seed: int = 0, advantage: float | None = None
) -> list[TrainSample]:
    """Random samples with these (prompt, completion) lengths; the sampler's log-probs are random
    too, so that the ratios lie far apart."""
    rng = np.random.default_rng(seed)
    return [
        TrainSample.of_answer(
            question_id=f"q{i}",
            prompt_ids=rng.integers(VOCABULARY, size=prompt).tolist(),
            completion_ids=rng.integers(VOCABULARY, size=completion).tolist(),
            logprobs=(-5 + rng.normal(size=completion)).tolist(),
            advantage=float(rng.normal()) if advantage is None else advantage,
        )
        for i, (prompt, completion) in enumerate(lengths)
    ]


def prompt_of(sample: TrainSample) -> tuple[int, ...]:
    """The context of an answer's sample."""
    return sample.token_ids[: sample.trained.index(True)]


def answer_of(sample: TrainSample) -> tuple[int, ...]:
    """The trained tokens of an answer's sample."""
    return sample.token_ids[sample.trained.index(True) :]


def worth(sample: TrainSample, advantage: float) -> TrainSample:
    """The same answer with another advantage."""
    return replace(sample, advantages=(advantage,) * len(sample.logprobs))


def read_sample(row: dict[str, Any]) -> TrainSample:
    """A sample from the JSON of its `dataclasses.asdict`."""
    return TrainSample(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})


def update(policy: TrainedModel, samples: Sequence[TrainSample], rate: float) -> list[UpdateResult]:
    """Train the policy on its own settings' objective."""
    return policy.update(samples, PolicyObjective.of(policy.settings, policy), rate)


def figures_of(result: UpdateResult) -> dict[str, float]:
    """All that a result says, in one table; the time that it took aside."""
    figures = {k: v for k, v in asdict(result).items() if k not in ("means", "largest", "seconds")}
    return figures | dict(result.means) | dict(result.largest)


def all_logprobs(
    model: PreTrainedModel, prompt: tuple[int, ...], completion: tuple[int, ...], temperature: float
) -> torch.Tensor:
    """[n, V]: log softmax(logits / T) at each of the n completion tokens, by one plain forward."""
    ids_1T = torch.tensor([[*prompt, *completion]])
    logits_TV = model(input_ids=ids_1T).logits[0]
    return torch.log_softmax(logits_TV[len(prompt) - 1 : -1] / temperature, dim=-1)


def plain_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A float64 copy that knows nothing of packing."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("sdpa")
    return twin.double().eval()


def at(values_nV: torch.Tensor, completion: tuple[int, ...]) -> torch.Tensor:
    """[n]: what stands at the completion's own tokens."""
    return values_nV.gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)


def near_samples(model: PreTrainedModel, off: float = 1.1) -> list[TrainSample]:
    """Random samples with log-probs that are the model's own, off by up to so many nats per token:
    by default, ratios lie between 0.3 and 3, on both sides of every clip. Prompts of the same
    length are the same."""
    policy, samples = LocalModel(copy.deepcopy(model), make_settings()), []
    prompts: dict[int, tuple[int, ...]] = {}
    for i, sample in enumerate(train_samples(LENGTHS)):
        prompt = prompts.setdefault(sample.prompt_length, prompt_of(sample))
        sample = replace(sample, token_ids=(*prompt, *answer_of(sample)))
        own_n = torch.tensor(*policy.logprobs([sample]))
        random = torch.Generator().manual_seed(i)
        noise_n = torch.empty(len(own_n)).uniform_(-off, off, generator=random)
        samples.append(replace(sample, logprobs=tuple((own_n + noise_n).tolist())))
    return samples
