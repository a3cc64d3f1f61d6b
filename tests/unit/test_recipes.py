"""Every shipped recipe loads, and holds what paper and authors' scripts say."""

from __future__ import annotations

import functools
import itertools
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ttrl.settings import Settings
from ttrl.settings.recipe import RECIPES, load_settings, model_names, recipe_names

BENCHMARKS = ("aime24", "amc", "gpqa", "math500")
MODELS = {
    "deepseek-math-7b": "deepseek-ai/deepseek-math-7b-instruct",
    "llama3.1-8b-instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "llama3.2-3b-instruct": "meta-llama/Llama-3.2-3B-Instruct",
    "llama3.3-70b-instruct": "meta-llama/Llama-3.3-70B-Instruct",
    "llama3.2-3b-oat-zero": "sail/Llama-3.2-3B-Oat-Zero",
    "ministral-8b": "mistralai/Ministral-8B-Instruct-2410",
    "mistral-nemo": "mistralai/Mistral-Nemo-Instruct-2407",
    "qwen2.5-32b": "Qwen/Qwen2.5-32B",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B",
    "qwen2.5-math-1.5b": "Qwen/Qwen2.5-Math-1.5B",
    "qwen2.5-math-7b": "Qwen/Qwen2.5-Math-7B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "r1-llama-8b": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
}
MACHINES = (
    "8xa100-40gb/qwen2.5-math-1.5b",
    "8xa100-40gb/qwen2.5-math-7b",
    "8xa100-40gb/qwen2.5-7b",
    "8xa100-40gb/llama3.1-8b-instruct",
    "8xa100-40gb/qwen3-8b",
    "8xa100-40gb/r1-llama-8b",
    "8xa100-40gb/qwen2.5-32b",
    "8xh100-80gb/qwen2.5-32b",
    "16xh100-80gb/llama3.3-70b-instruct",
    "1x40gb/qwen2.5-math-1.5b",
    "1x40gb/qwen2.5-math-7b-lora",
    "1x24gb/qwen2.5-math-1.5b-lora",
)
"""For one machine each; tests/unit/test_plan.py holds that they fit it."""
QUESTIONS = {"aime24": 30, "amc": 83, "gpqa": 198, "math500": 500}
SUFFIX = "\nPlease reason step by step, and put your final answer within \\boxed{}."


load = functools.cache(load_settings)


def value(settings: Settings, key: str) -> object:
    for name in key.split("."):
        settings = getattr(settings, name)
    return settings


def test_the_shipped_names() -> None:
    tiny = ("tiny-agents", "tiny-arithmetic", "tiny-one-example", "tiny-self-posed", "tiny-stream")
    assert recipe_names() == sorted([*BENCHMARKS, *tiny, *MACHINES])
    assert model_names() == sorted(MODELS)


@pytest.mark.parametrize(("recipe", "model"), [*itertools.product(BENCHMARKS, MODELS)])
def test_every_benchmark_goes_with_every_model(recipe: str, model: str) -> None:
    settings = load_settings(recipe, model=model)
    assert settings.name == f"{recipe}-{model}"
    assert settings.model.path == MODELS[model]
    assert settings.data.train.startswith("hub:")
    assert load_settings(recipe, model=MODELS[model].upper()) == settings


@pytest.mark.parametrize("recipe", BENCHMARKS)
@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("rollout.votes", 64),
        ("policy.trained_samples", 32),
        ("policy.sequences_per_update", 32),
        ("optimizer.learning_rate", 5e-7),
        ("optimizer.warmup_share", 0.03),
        ("optimizer.final_lr_share", 0.0),
        ("optimizer.weight_decay", 0.01),
        ("optimizer.betas", (0.9, 0.999)),
        ("optimizer.grad_clip", 1.0),
        ("loss.clip_low", 0.2),
        ("loss.clip_high", 0.2),
        ("loss.dual_clip", 3.0),
        ("loss.kl_coef", 0.001),
        ("loss.entropy_coef", 0.0),
        ("loss.aggregation", "token_mean"),
        ("reward.advantages", "mean_std"),
        ("evaluation.temperature", 0.6),
        ("evaluation.top_p", 0.95),
    ],
)
def test_what_all_runs_of_the_paper_share(recipe: str, key: str, expected: Any) -> None:
    for model in MODELS:
        assert value(load(recipe, model=model), key) == expected


@pytest.mark.parametrize(
    ("recipe", "questions_per_step", "epochs", "steps", "max_prompt_tokens"),
    [
        ("aime24", 8, 80, 240, 512),
        ("amc", 8, 30, 300, 1024),
        ("math500", 32, 10, 150, 1024),
        ("gpqa", 16, 20, 240, 1024),
    ],
)
def test_benchmarks(
    recipe: str, questions_per_step: int, epochs: int, steps: int, max_prompt_tokens: int
) -> None:
    settings = load_settings(recipe, model="qwen2.5-7b")
    assert settings.rollout.questions_per_step == questions_per_step
    assert settings.epochs == epochs
    assert QUESTIONS[recipe] // questions_per_step * epochs == steps
    assert settings.data.max_prompt_tokens == max_prompt_tokens
    assert settings.max_steps is None


@pytest.mark.parametrize(
    ("recipe", "source", "split", "prompt", "identity"),
    [
        ("aime24", "hub:HuggingFaceH4/aime_2024", "train", "problem", "id"),
        ("amc", "hub:AI-MO/aimo-validation-amc", "train", "problem", "id"),
        ("math500", "hub:HuggingFaceH4/MATH-500", "test", "problem", "unique_id"),
        ("gpqa", "hub:fingertap/GPQA-Diamond", "test", "question", "id"),
    ],
)
def test_where_the_questions_come_from(
    recipe: str, source: str, split: str, prompt: str, identity: str
) -> None:
    data = load_settings(recipe, model="qwen2.5-7b").data
    assert (data.train, data.split, data.prompt_field) == (source, split, prompt)
    assert (data.answer_field, data.id_field, data.level_field) == ("answer", identity, "level")


@pytest.mark.parametrize("model", MODELS)
def test_models(model: str) -> None:
    settings = load_settings("aime24", model=model)
    math, long = model.startswith("qwen2.5-math"), model == "r1-llama-8b"
    assert settings.rollout.temperature == (1.0 if math or long else 0.6)
    assert settings.data.suffix == ("" if math else SUFFIX)
    assert settings.rollout.max_new_tokens == (32768 if long else 3072)
    assert settings.evaluation.samples == (4 if long else 16)
    thinking_off = {"enable_thinking": False}
    assert settings.data.chat_template_kwargs == (thinking_off if model == "qwen3-8b" else {})
    assert settings.data.chat_template


def test_a_model_that_ttrl_has_no_part_for_gets_the_papers_general_settings() -> None:
    settings = load_settings("amc", model="somebody/Some-Model")
    assert settings.name == "amc-some-model"
    assert settings.model.path == "somebody/Some-Model"
    assert (settings.rollout.temperature, settings.data.suffix) == (0.6, SUFFIX)


def test_the_public_files_of_ttrl_take_the_place_of_the_hub() -> None:
    overrides = ["data.train=aime.json", "data.prompt_field=prompt"]
    settings = load_settings("aime24", model="qwen2.5-math-7b", overrides=overrides)
    assert (settings.data.train, settings.data.prompt_field) == ("aime.json", "prompt")
    assert settings.data.id_field == "id"


def test_tiny_arithmetic_needs_nothing_but_its_name() -> None:
    settings = load_settings("tiny-arithmetic")
    assert settings.name == "tiny-arithmetic"
    assert (settings.model.path, settings.model.dtype) == ("tiny-base", "float32")
    assert settings.data.train == "arithmetic:train"
    assert settings.data.held_out == "arithmetic:held_out"
    assert settings.loss.kl_coef == 0.0


def test_a_recipe_of_posed_questions_measures_given_ones(tmp_path: Path) -> None:
    given = load_settings("tiny-self-posed", data="arithmetic:train")
    assert (given.data.source, given.data.train) == ("list", "arithmetic:train")
    assert given.policy.sequences_per_update == 16 * 32  # without its 64 proposals
    posed = load_settings("tiny-self-posed", overrides=["reward.labels=checker"])
    assert posed.policy.sequences_per_update == 576
    # As for `ttrl eval --recipe RUN/config.toml`, where everything is said.
    path = tmp_path / "config.toml"
    path.write_text(posed.to_toml(), encoding="utf-8")
    again = load_settings(str(path), model="tiny-base", data="arithmetic:train")
    assert (again.reward.labels, again.posed) == ("votes", given.posed)
    few = load_settings("tiny-self-posed", data="d", overrides=["policy.sequences_per_update=64"])
    assert few.policy.sequences_per_update == 64


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.toml")), ids=lambda p: p.stem)
def test_a_benchmark_or_model_says_only_what_its_lower_layers_do_not(path: Path) -> None:
    """paper.toml repeats defaults on purpose, tiny-arithmetic stands alone."""
    if path.parent == RECIPES:
        return
    paper = tomllib.loads((RECIPES / "paper.toml").read_text())
    for section, table in tomllib.loads(path.read_text()).items():
        for key, here in table.items() if isinstance(table, dict) else ():
            assert paper.get(section, {}).get(key) != here, f"{section}.{key} is in paper.toml"
