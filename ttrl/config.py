"""A whole run as typed settings. Defaults are in this file, nowhere else.

`ttrl.recipe` reads them from TOML and the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

import pydantic
import tomli_w
from pydantic import Field

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(pydantic.BaseModel):
    """Settings are frozen, refuse unknown keys, and never turn one type into another."""

    model_config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class ModelSettings(Section):
    """The policy's starting point."""

    path: str
    """A folder in the Hugging Face format, a hub name, or "tiny-base" (shipped with ttrl)."""
    revision: str | None = None
    """Hub commit, tag or branch; pin it for a run that others can repeat."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the matrix products in training, and of the rollout engine's weights. The policy's
    own weights and optimizer state are float32."""


class DataSettings(Section):
    """Questions and how they are put to the model."""

    train: str
    """Questions to train on, labels never read: a .jsonl, .json or .parquet file,
    "hub:OWNER/NAME", or "arithmetic:train"."""
    held_out: str | None = None
    """Questions to measure on but never train on; same forms as ``train``."""
    split: str = "train"
    """Split of a hub data set."""
    subset: str | None = None
    """Configuration of a hub data set."""
    revision: str | None = None
    """Commit, tag or branch of a hub data set."""
    prompt_field: str = "prompt"
    """Name of the field that holds the question."""
    answer_field: str = "answer"
    """Name of the field that holds the reference answer, if there is one."""
    id_field: str = "id"
    """Name of the field that holds the id; a row without it is named by its position."""
    level_field: str = "level"
    """Name of the field that holds the difficulty level, if there is one."""
    chat_template: bool = True
    """Put the question through the tokenizer's chat template."""
    chat_template_kwargs: dict[str, bool | int | float | str] = {}
    """Variables for the chat template, for example ``enable_thinking = false``."""
    system_prompt: str | None = None
    """A system message; None leaves it to the chat template."""
    suffix: str = ""
    """Appended to every question."""
    max_prompt_tokens: Positive = 1024
    """Longer prompts are rejected."""
    max_rejected_share: Share = 0.1
    """The run stops if more rows than this share are rejected."""


class RolloutSettings(Section):
    """Sampling of the answers that vote."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates: transformers works anywhere; vllm is fast, and installed separately."""
    questions_per_step: Positive = 8
    """Questions in one step."""
    votes: Annotated[int, Field(ge=2)] = 64
    """Answers sampled per question; all of them vote."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Sampling temperature; the loss uses the same one."""
    max_new_tokens: Positive = 3072
    """An answer is cut off after this many tokens."""
    batch_size: Positive = 512
    """Sequences that are decoded together, at most."""
    gpu_memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """vllm on a GPU: share of its memory for weights and KV cache, while it samples."""
    tensor_parallel: Positive = 1
    """vllm: GPUs that share one engine, each with a part of every matrix."""
    kv_cache_gb: Positive = 2
    """vllm on a CPU: GiB for the KV cache."""
    stop_when_decided: bool = False
    """Sample a question's votes in four rounds, and stop after a round in which the winner leads
    by more than the votes still to come: the label is that of all votes, its share is not."""


class AnswerSettings(Section):
    """From completions to answers, and when two answers are the same."""

    extract: str = "boxed"
    """boxed: the last complete \\boxed{...}. choice: that, else the last letter A-Z that stands
    alone as a choice. boxed_or_number: the box, else the last number. Or FILE.py:FUNCTION, a
    function from the completion's text to the answer or None."""
    symbolic: bool = True
    """Compare by computer algebra what spelling rules leave open, in worker processes."""
    deadline_s: Annotated[float, Field(gt=0, le=3600)] = 2.0
    """Seconds for one symbolic question; what takes longer is compared by its spelling."""
    memory_mb: Annotated[int, Field(ge=256)] = 1024
    """Address space of one worker process."""
    workers: Positive | None = None
    """Worker processes at most; None: one per CPU core. They start when first needed."""


class RewardSettings(Section):
    """From answers to advantages."""

    estimator: str = "majority"
    """How votes become rewards: a name that `ttrl.rewards.estimators` registers, or
    FILE.py:CLASS for your own."""
    options: dict[str, bool | int | float | str] = {}
    """The estimator's own settings, by name."""
    labels: Literal["votes", "teacher", "ground_truth"] = "votes"
    """Whom an answer must agree with: the voters' majority; the majority of a teacher's answers
    (see ``teacher_decay``); or the reference answers, the upper bound of the paper."""
    teacher_decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The teacher's weights are decay x its own + (1 - decay) x the policy's after every step; 1
    keeps the starting model, whose labels are then sampled once per question."""
    allow_ground_truth: bool = False
    """Must be true for ``labels = "ground_truth"``: training then reads reference answers."""
    advantages: Literal["mean_std", "mean", "rloo", "none"] = "mean_std"
    """mean_std: reward minus the group's mean, by the group's standard deviation (GRPO). mean:
    without the division (Dr. GRPO). rloo: reward minus the mean of the others. none: the reward
    itself, for estimators whose rewards already have signs."""
    selection: Literal["first", "random", "balanced"] = "first"
    """Which answers of a group are trained on, where there are more than
    ``policy.trained_samples``: the first ones (the paper), random ones, or as many with a positive
    advantage as without, as far as there are."""

    @pydantic.field_validator("advantages", mode="before")
    @classmethod
    def _none_is_a_kind(cls, value: object) -> object:
        return "none" if value is None else value  # elsewhere, --set KEY=none unsets


class GuardSettings(Section):
    """Watches label-free signs of a collapse."""

    on_collapse: Literal["warn", "stop", "ignore"] = "warn"
    """stop: end the run, with the weights from before the signs began."""
    flip_rate: Share = 0.5
    """A sign: over a pass, more labels than this share differ from those of the pass before."""
    rise: Share = 0.1
    """The majority ratio must have risen by this much over the first pass for one of the next:"""
    distinct_fall: Share = 0.1
    """A sign: distinct answers per question fell to this share of the first pass."""
    length_fall: Share = 0.4
    """A sign: response tokens fell to this share of the first pass."""
    entropy_fall: Share = 0.05
    """A sign: the policy's entropy fell to this share of the first pass."""


class PolicySettings(Section):
    """The update."""

    trained_samples: Positive = 32
    """Answers per question that are trained on: the first ones, as in the paper."""
    sequences_per_update: Positive = 32
    """Sequences in one optimizer step."""
    tokens_per_batch: Positive = 16384
    """Packed tokens in one forward pass."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-7
    """Peak learning rate of AdamW."""
    warmup_share: Share = 0.03
    """Share of the run's steps over which the learning rate rises linearly."""
    final_lr_share: Share = 0.0
    """The cosine ends at this share of the peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decoupled weight decay."""
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.999)  # TOML has only lists
    """AdamW's moment decay rates."""
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest global gradient norm."""
    clip_low: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """PPO: the ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, Field(ge=0)] = 0.2
    """PPO: the ratio is clipped above at 1 + clip_high."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Dual-clip PPO: bounds the loss of tokens with a negative advantage; None is off."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the k3 KL penalty against the starting model, which is kept in memory if > 0."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """token_mean: every token of the update weighs the same (DAPO). sequence_mean: every
    sequence weighs the same (GRPO). constant: divided by sequences x max_new_tokens (Dr. GRPO)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    backend: Literal["local", "zero3"] | None = None
    """local: one process holds everything. zero3: DeepSpeed spreads weights, gradients and
    optimizer state over the GPUs. None: zero3 when launched on several."""
    offload_during_rollout: bool = False
    """zero3 on GPUs: gradients, optimizer state and its copy of the weights wait in the host's
    memory while answers are sampled."""
    lora_rank: Positive | None = None
    """Train adapters of this rank on all matrices of the layers, and leave the weights as they
    are; None trains all weights."""


class EvaluationSettings(Section):
    """Measurement against the answer key, before and after training."""

    samples: Positive = 16
    """Answers per question; pass@1 is their mean, maj@k their vote."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.6
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus sampling."""
    every: Annotated[int, Field(ge=0)] = 0
    """Also measure after every so many steps; 0: only before and after."""


class Settings(Section):
    """Everything that decides what a run does."""

    name: str
    """Names the run folder."""
    model: ModelSettings
    data: DataSettings
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides the order of the questions and every sample."""
    epochs: Positive = 1
    """Passes over the training questions; a last incomplete step of a pass is dropped."""
    max_steps: Positive | None = None
    """Stop after this many steps, whatever ``epochs`` says."""
    threads: Positive | None = None
    """CPU threads; part of the settings because the last bit of a CPU sum depends on it."""
    rollout: RolloutSettings = RolloutSettings()
    answers: AnswerSettings = AnswerSettings()
    reward: RewardSettings = RewardSettings()
    guard: GuardSettings = GuardSettings()
    policy: PolicySettings = PolicySettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @pydantic.model_validator(mode="after")
    def _rules(self) -> Self:
        """Rules that span sections, one line each; all broken ones are reported together."""
        rollout, policy = self.rollout, self.policy
        trained = rollout.questions_per_step * policy.trained_samples
        longest = self.data.max_prompt_tokens + rollout.max_new_tokens
        broken = [
            message
            for ok, message in (
                (
                    policy.trained_samples <= rollout.votes,
                    f"policy.trained_samples = {policy.trained_samples} is more than "
                    f"rollout.votes = {rollout.votes}: only sampled answers can be trained on",
                ),
                (
                    policy.sequences_per_update <= trained,
                    f"policy.sequences_per_update = {policy.sequences_per_update} is more than a "
                    f"step's {trained} trained sequences (rollout.questions_per_step x "
                    "policy.trained_samples): an update would never fill",
                ),
                (
                    policy.tokens_per_batch >= longest,
                    f"policy.tokens_per_batch = {policy.tokens_per_batch} cannot hold one "
                    f"sequence of {longest} tokens (data.max_prompt_tokens + "
                    "rollout.max_new_tokens): raise it, or lower one of those",
                ),
                (
                    self.reward.labels != "ground_truth" or self.reward.allow_ground_truth,
                    'reward.labels = "ground_truth" trains on the reference answers: if that is '
                    "meant, set reward.allow_ground_truth = true",
                ),
                (
                    self.data.system_prompt is None or self.data.chat_template,
                    "data.system_prompt needs data.chat_template = true",
                ),
                (
                    not self.data.chat_template_kwargs or self.data.chat_template,
                    "data.chat_template_kwargs needs data.chat_template = true",
                ),
                (
                    not self.data.suffix.startswith("\\n"),
                    "data.suffix starts with a backslash and an n where a new line was meant: "
                    "put it in double quotes, inside the shell's single quotes",
                ),
                (
                    self.name not in ("", ".", "..") and not set(self.name) & set("/\\\0"),
                    f"name = {self.name!r} cannot name a folder",
                ),
            )
            if not ok
        ]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    def to_toml(self) -> str:
        """The resolved settings; `load_settings` on this text gives equal settings."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def readable_errors(error: pydantic.ValidationError) -> str:
    """What is wrong with settings, by their names, in one line."""
    return "; ".join(_readable(e) for e in error.errors())


def _readable(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if not where:
        return str(message)
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "extra_forbidden":
        return f"{where} is unknown"
    return f"{where} = {error['input']!r}: {message[0].lower()}{message[1:]}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word; for a dotted key also by its last part, in whatever section."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    if not near:
        tails = {key.rpartition(".")[2]: key for key in known}
        near = [tails[t] for t in difflib.get_close_matches(word.rpartition(".")[2], tails, n=1)]
    return f" (did you mean {near[0]!r}?)" if near else ""
