"""Overrides and rules: what is accepted, and what the refusals say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pydantic
import pytest
from recipes import MINIMAL, load, refusal

from ttrl.settings import Section, Settings
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError

# ---------------------------------------------------------------------------------------------
# Overrides


@pytest.mark.parametrize(
    ("override", "section", "key", "expected"),
    [
        ("seed=7", None, "seed", 7),
        ("name=my-run", None, "name", "my-run"),
        (" seed = 7 ", None, "seed", 7),
        ("threads=2", None, "threads", 2),
        ("model.path=Qwen/Qwen3-8B", "model", "path", "Qwen/Qwen3-8B"),
        ('model.path="quoted"', "model", "path", "quoted"),
        ("data.train=2024.json", "data", "train", "2024.json"),
        ("data.train=a=b.json", "data", "train", "a=b.json"),
        ("data.chat_template=false", "data", "chat_template", False),
        (r'data.suffix="\nThink."', "data", "suffix", "\nThink."),
        ("data.suffix=", "data", "suffix", ""),
        (r"data.suffix= in \boxed{}.", "data", "suffix", r" in \boxed{}."),
        ("data.held_out=none", "data", "held_out", None),
        ("optimizer.learning_rate=1e-6", "optimizer", "learning_rate", 1e-6),
        ("optimizer.learning_rate=1", "optimizer", "learning_rate", 1.0),
        ("loss.dual_clip=3.0", "loss", "dual_clip", 3.0),
        ("optimizer.betas=[0.8, 0.9]", "optimizer", "betas", (0.8, 0.9)),
        (
            "data.chat_template_kwargs.enable_thinking=false",
            "data",
            "chat_template_kwargs",
            {"enable_thinking": False},
        ),
        ("data.chat_template_kwargs={a = 1}", "data", "chat_template_kwargs", {"a": 1}),
    ],
)
def test_overrides(override: str, section: str | None, key: str, expected: Any) -> None:
    settings = load(override)
    found = getattr(getattr(settings, section) if section else settings, key)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "key", ["reward.advantages", "loss.policy", "loss.sampler_correction", "checkpoint.best"]
)
def test_none_is_chosen_where_it_is_a_choice(key: str) -> None:
    section, _, name = key.partition(".")
    for text in ("none", '"none"'):
        assert getattr(getattr(load(f"{key}={text}"), section), name) == "none"


def test_none_takes_back_what_a_recipe_sets() -> None:
    assert load_settings("amc", model="qwen3-8b").loss.dual_clip == 3.0
    unset = load_settings("amc", model="qwen3-8b", overrides=["loss.dual_clip=none"])
    assert unset.loss.dual_clip is None


def test_the_last_override_wins_and_leaves_the_others_alone() -> None:
    settings = load("rollout.votes=64", "rollout.votes=48", "rollout.batch_size=8")
    assert (settings.rollout.votes, settings.rollout.batch_size) == (48, 8)
    assert settings.rollout.temperature == 1.0


def test_overrides_come_after_the_model_part() -> None:
    settings = load_settings(
        "aime24", model="qwen2.5-math-7b", overrides=["rollout.temperature=0.7"]
    )
    assert settings.rollout.temperature == 0.7


@pytest.mark.parametrize("override", ["seed", "=3", " = 3"])
def test_an_override_needs_key_and_value(override: str) -> None:
    assert "expected key=value" in refusal(override)


# ---------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("sed=1", "seed"),
        ("rollout.vote=3", "rollout.votes"),
        ("rolout.votes=3", "rollout.votes"),
        ("warmup_share=3", "optimizer.warmup_share"),
        ("data.chat_template_kwarg.x=1", "data.chat_template_kwargs"),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, nearest: str) -> None:
    key = override.partition("=")[0]
    assert refusal(override) == f"unknown setting {key!r} (did you mean {nearest!r}?)"


def test_a_key_of_several_sections_names_them_all() -> None:
    message = refusal("learning_rate=3")
    assert message.startswith("unknown setting 'learning_rate' (did you mean ")
    assert all(f"'{s}.learning_rate'" in message for s in ("optimizer", "critic", "prime"))


@pytest.mark.parametrize("key", ["rollout", "zzz", "seed.x", "optimizer.betas.x"])
def test_an_unknown_key_without_a_near_one(key: str) -> None:
    assert refusal(f"{key}=1").startswith(f"unknown setting {key!r}")


def test_an_unknown_key_in_a_file_names_the_nearest(recipe: Callable[..., str]) -> None:
    path = recipe(MINIMAL + "[rollout]\nvote = 3\n")
    with pytest.raises(UserError, match=r"'rollout\.vote' \(did you mean 'rollout\.votes'\?\)"):
        load_settings(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=abc", "seed = 'abc': input should be a valid integer"),
        ("seed='7'", "seed = '7': input should be a valid integer"),
        ("seed=7.0", "seed = 7.0: input should be a valid integer"),
        ("seed=true", "seed = True: input should be a valid integer"),
        ("seed=-1", "seed = -1: input should be greater than or equal to 0"),
        ("data.chat_template=1", "data.chat_template = 1: input should be a valid boolean"),
        ("data.chat_template='yes'", "data.chat_template = 'yes': input should be a valid boolean"),
        ("data.suffix=3", "data.suffix = 3: input should be a valid string"),
        (
            "lora.targets=q_proj,v_proj",
            "lora.targets = 'q_proj,v_proj': input should be 'all-linear', or input should be a "
            'list, for example ["one", "other"]',
        ),
        ("rollout.votes=1", "rollout.votes = 1: input should be greater than or equal to 2"),
        ("answers.deadline_s=1e300", "answers.deadline_s = 1e+300: input should be less than or"),
        ("rollout.votes=none", "rollout.votes = None: input should be a valid integer"),
        ("rollout.temperature=0", "rollout.temperature = 0: input should be greater than or"),
        ("evaluation.samples=1000000", "evaluation.samples = 1000000: input should be less than"),
        ("rollout.votes=" + "[" * 3000, "rollout.votes = '[[["),
        ("rollout.engine=" + "x" * 5000, "rollout.engine = '" + "x" * 199 + "...: input should be"),
        ("rollout.temperature=nan", "rollout.temperature = nan: input should be a finite number"),
        (
            "optimizer.learning_rate=inf",
            "optimizer.learning_rate = inf: input should be a finite number",
        ),
        (
            "optimizer.learning_rate=-1e-6",
            "optimizer.learning_rate = -1e-06: input should be greater",
        ),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas.1 = 1.0: input should be less than 1"),
        ("optimizer.betas=[0.9]", "optimizer.betas.1 is missing"),
        (
            "optimizer.betas=['0.9', 0.9]",
            "optimizer.betas.0 = '0.9': input should be a valid number",
        ),
        ("loss.aggregation=mean", "loss.aggregation = 'mean': input should be 'token_mean'"),
        ("model.dtype=float16", "model.dtype = 'float16': input should be 'float32' or 'bfloat16'"),
        ("data.chat_template_kwargs=x", "data.chat_template_kwargs = 'x': input should be a valid"),
        ("data.max_rejected_share=1.5", "data.max_rejected_share = 1.5: input should be less"),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_expectation(
    override: str, message: str
) -> None:
    assert refusal(override).startswith(message)


def test_all_wrong_values_are_reported_together() -> None:
    assert refusal("seed=x", "epochs=0") == (
        "seed = 'x': input should be a valid integer; epochs = 0: input should be greater than 0"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["rollout.votes=31"],
            "policy.trained_samples = 32 is more than rollout.votes = 31: only sampled answers can "
            "be trained on; set 31 or less",
        ),
        (
            ["policy.sequences_per_update=513"],
            "policy.sequences_per_update = 513 is more than a step's 512 trained sequences",
        ),
        (
            ["memory.tokens_per_batch=207"],
            "memory.tokens_per_batch = 207 cannot hold one sequence of 208 tokens",
        ),
        (
            ["loss.policy=cispo", "loss.dual_clip=3"],
            'loss.dual_clip = 3.0 needs loss.policy = "ppo_clip"',
        ),
        (
            ["loss.kl_estimator=k1"],
            'loss.kl_estimator = "k1" needs loss.kl_coef above 0',
        ),
        (
            ["memory.recompute_share=0.5"],
            "memory.recompute_share = 0.5 needs memory.gradient_checkpointing = true",
        ),
        (
            ["memory.offload_optimizer=true", "memory.offload_during_rollout=true"],
            "memory.offload_during_rollout = true has nothing to move from the GPU with "
            "memory.offload_optimizer = true",
        ),
        (
            ["data.system_prompt=x", "data.chat_template=false"],
            "data.system_prompt needs data.chat_template = true",
        ),
        (
            ["data.chat_template_kwargs.x=1", "data.chat_template=false"],
            "data.chat_template_kwargs needs data.chat_template = true",
        ),
        ([r"data.suffix=\nThink."], "data.suffix starts with a backslash and an n"),
        (["rollout.top_p=0.9"], "rollout.top_p = 0.9 needs rollout.top_k, 1 to 128: the tokens"),
        (["rollout.min_p=0.1"], "rollout.min_p = 0.1 needs rollout.top_k, 1 to 128: the tokens"),
        (["rollout.engines=2"], 'rollout.engines = 2 needs rollout.placement = "separate"'),
        (["rollout.engine_gpus=[1]"], "rollout.engine_gpus = [1] needs rollout.placement"),
        (
            ["rollout.placement=separate", "rollout.engines=3", "rollout.engine_gpus=[1, 2]"],
            "rollout.engine_gpus = [1, 2] names 2 GPUs, but rollout.engines = 3",
        ),
        (
            ["reward.extra.soft_overlong=1"],
            "reward.extra = {'soft_overlong': 1.0} and reward.overlong_buffer = None: soft_over",
        ),
        (
            ["reward.overlong_buffer=9"],
            "reward.extra = {} and reward.overlong_buffer = 9: soft_",
        ),
        (
            ["reward.extra.soft_overlong=1", "reward.overlong_buffer=81"],
            "reward.overlong_buffer = 81 is more than rollout.max_new_tokens = 80",
        ),
        (
            ["reward.extra_aggregation=normalize_then_sum"],
            'reward.extra_aggregation = "normalize_then_sum" needs reward.extra',
        ),
        (
            [
                "reward.extra={'a.py:b'=1}",
                "reward.extra_aggregation=normalize_then_sum",
                "reward.advantages=rloo",
            ],
            'reward.extra_aggregation = "normalize_then_sum" needs reward.advantages = "mean_std", '
            'got "rloo"',
        ),
        (
            ["reward.extra={'a.py:b'=1}", "reward.advantages=remax"],
            'reward.advantages = "remax" compares with whether a greedy answer agrees',
        ),
        (
            ["reward.extra={'a.py:b'=1}", "reward.advantages=max_rl"],
            'reward.advantages = "max_rl" divides by the mean reward',
        ),
        (
            ["rollout.resample_rounds=2", "reward.labels=teacher"],
            "rollout.resample_rounds = 2 would bring the engine to the weights of",
        ),
        (["harmony.votes=8"], '[harmony] needs reward.labels = "harmony" (it is "votes")'),
        (
            ["reward.labels=harmony", "harmony.tokens=99", "reflection.candidates=3"],
            '[reflection] needs reward.labels = "reflection" (it is "harmony")',
        ),
        (
            ["reward.labels=harmony", "harmony.paraphrase=a.py:b", "harmony.tokens=99"],
            'harmony.tokens = 99 needs harmony.paraphrase = "policy"',
        ),
        (
            ["reward.labels=harmony", "rollout.stop_when_decided=true", "harmony.tokens=99"],
            'rollout.stop_when_decided = true would decide by votes, but reward.labels = "harmony"',
        ),
        (
            ["reward.labels=reflection", "reflection.tokens=208"],
            "reflection.tokens = 208 leaves no room for a prompt within 208 tokens",
        ),
        (["checkpoint.best=held_out"], 'checkpoint.best = "held_out" needs data.held_out, and'),
        (
            ["checkpoint.best=held_out", "evaluation.every=4"],
            'checkpoint.best = "held_out" needs data.held_out, and every checkpoint measured: '
            "checkpoint.every = 10 must be a multiple of evaluation.every = 4",
        ),
        (
            ["checkpoint.best=held_out", "evaluation.every=5", "data.held_out=none"],
            'checkpoint.best = "held_out" needs data.held_out',
        ),
        (["name=a/b"], "name = 'a/b' cannot name a folder"),
        (["name=.."], "name = '..' cannot name a folder"),
        (["name="], "name = '' cannot name a folder"),
    ],
)
def test_each_rule_across_sections(overrides: list[str], message: str) -> None:
    assert refusal(*overrides).startswith(message)


@pytest.mark.parametrize(
    "override",
    ["rollout.votes=32", "policy.sequences_per_update=512", "memory.tokens_per_batch=208"],
)
def test_each_rule_allows_its_limit(override: str) -> None:
    load(override)


def test_the_best_checkpoint_may_be_the_best_measured_one() -> None:
    load("checkpoint.best=held_out", "evaluation.every=5")


def test_all_broken_rules_are_reported_together() -> None:
    message = refusal("rollout.votes=31", "memory.tokens_per_batch=1")
    assert "policy.trained_samples = 32 is more" in message
    assert "; memory.tokens_per_batch = 1 cannot hold" in message


# ---------------------------------------------------------------------------------------------
# Resolved settings


@pytest.mark.parametrize(
    ("name", "model", "overrides"),
    [
        ("tiny-arithmetic", None, ["max_steps=3", "data.held_out=none", r'data.suffix="\n\"é\""']),
        ("aime24", "qwen3-8b", ["optimizer.betas=[0.5, 0.25]", "loss.dual_clip=none"]),
        ("math500", "r1-llama-8b", ["model.revision=abc", "threads=1"]),
    ],
)
def test_resolved_settings_load_as_equal_settings(
    recipe: Callable[..., str], name: str, model: str | None, overrides: list[str]
) -> None:
    settings = load_settings(name, model=model, overrides=overrides)
    assert load_settings(recipe(settings.to_toml())) == settings


def test_the_resolved_settings_name_every_key(recipe: Callable[..., str]) -> None:
    """A later default must not change what an old run's config.toml means."""
    text = load_settings("aime24", model="qwen3-8b").to_toml()
    for key in ("gradient_checkpointing", "max_rejected_share", "batch_size", "estimator", "every"):
        assert f"\n{key} = " in text


def test_only_none_is_left_out_of_the_resolved_settings_so_every_optional_default_is_none() -> None:
    def sections(section: type[Section]) -> Iterator[type[Section]]:
        yield section
        for field in section.model_fields.values():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                yield from sections(field.annotation)

    def accepts_none(field: pydantic.fields.FieldInfo) -> bool:
        return type(None) in getattr(field.annotation, "__args__", ())

    optional = [f for s in sections(Settings) for f in s.model_fields.values() if accepts_none(f)]
    assert len(optional) >= 5
    assert all(field.default is None for field in optional)


def test_settings_are_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        load().seed = 3
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        load().optimizer.learning_rate = 3.0


def test_no_setting_holds_a_secret() -> None:
    """Keys and tokens of services come from the environment, so that no file or log holds them."""
    text = load_settings("aime24", model="qwen3-8b").to_toml()
    keys = [line.partition(" = ")[0] for line in text.splitlines() if " = " in line]
    assert len(keys) > 30
    assert not [k for k in keys if k.endswith(("_key", "_token", "secret", "password"))]
