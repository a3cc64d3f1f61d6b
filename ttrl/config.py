"""A whole run as typed settings. Defaults are in this file, nowhere else.

`ttrl.recipe` reads them from TOML and the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self, get_args

import pydantic
import tomli_w
from pydantic import Field

Positive = Annotated[int, Field(gt=0, lt=2**31)]
Count = Annotated[int, Field(gt=0, le=2**16)]
Temperature = Annotated[float, Field(ge=0.01, le=10)]
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

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _none_is_a_kind(cls, value: object, info: pydantic.ValidationInfo) -> object:
        """Where "none" is one of the choices, ``--set KEY=none`` chooses it; else it unsets."""
        chosen = info.field_name and "none" in get_args(
            cls.model_fields[info.field_name].annotation
        )
        return "none" if value is None and chosen else value


class ModelSettings(Section):
    """The policy's starting point."""

    path: str
    """A folder in the Hugging Face format, a hub name, or "tiny-base" (shipped with ttrl)."""
    revision: str | None = None
    """Hub commit, tag or branch; pin it for a run that others can repeat."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the matrix products in training, and of the rollout engine's weights. The policy's
    own weights and optimizer state are float32."""


HeldOutKey = Literal[
    "split", "subset", "revision", "prompt_field", "answer_field", "id_field", "level_field"
]


class DataSettings(Section):
    """Questions and how they are put to the model."""

    train: str
    """Questions to train on, labels never read: a .jsonl, .json, .parquet, .csv, .tsv or .txt file,
    "hub:OWNER/NAME", or "arithmetic:train". In a recipe, a file beside it comes first."""
    held_out: str | None = None
    """Questions to measure on but never train on; same forms as ``train``."""
    for_held_out: dict[HeldOutKey, str] = {}
    """Which of split, subset, revision and the names of fields are others for ``held_out``, for
    example ``prompt_field = "question"``."""
    split: str = "train"
    """Split of a hub data set."""
    subset: str | None = None
    """Configuration of a hub data set."""
    revision: str | None = None
    """Commit, tag or branch of a hub data set."""
    prompt_field: str = "prompt"
    """Name of the field that holds the question, as text or as a list of messages. Of this field
    and the next ones: "a.b" is the field b inside a, "messages.-1.content" one in a list's last."""
    answer_field: str = "answer"
    """Name of the field that holds the reference answer, if there is one, or a solution with the
    answer in \\boxed{...} or behind ####."""
    id_field: str = "id"
    """Name of the field that holds the id; a row without it is named by its position."""
    level_field: str = "level"
    """Name of the field that holds the difficulty level, if there is one."""
    chat_template: bool = True
    """Put the question through the tokenizer's chat template."""
    chat_template_kwargs: dict[str, bool | int | float | str] = {}
    """Variables for the chat template, for example ``enable_thinking = false``."""
    system_prompt: str | None = None
    """A system message for questions without one of their own; None leaves it to the chat
    template."""
    suffix: str = ""
    """Appended to every question."""
    max_prompt_tokens: Positive = 1024
    """Longer prompts are rejected."""
    max_rejected_share: Share = 0.1
    """The run stops if more rows than this share are rejected."""

    def as_held_out(self) -> Self:
        """The settings for reading ``held_out``."""
        return self.model_copy(update={str(k): v for k, v in self.for_held_out.items()})


class RolloutSettings(Section):
    """Sampling of the answers that vote."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates: transformers works anywhere; vllm is fast, and installed separately."""
    questions_per_step: Positive = 8
    """Questions in one step."""
    votes: Annotated[int, Field(ge=2, le=2**16)] = 64
    """Answers sampled per question; all of them vote."""
    temperature: Temperature = 1.0
    """Sampling temperature; the loss uses the same one."""
    max_new_tokens: Positive = 3072
    """An answer is cut off after this many tokens."""
    batch_size: Count = 512
    """Sequences that are decoded together, at most."""
    tensor_parallel: Count = 1
    """vllm: ranks that share one engine, which then needs less of each GPU's memory."""
    gpu_memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """vllm on a GPU: share of its memory for weights and KV cache, while it samples."""
    kv_cache_gb: Positive = 2
    """vllm on a CPU: GiB for the KV cache."""
    placement: Literal["colocated", "separate"] = "colocated"
    """colocated: the engine is in the trainer's process and sleeps while the policy is updated.
    separate: engines are processes of their own, on this machine."""
    engines: Count = 1
    """separate: how many processes; questions are spread over them."""
    engine_gpus: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] = ()
    """separate, on GPUs: which one each engine gets, as torch numbers them; with several ranks,
    first those of rank 0."""
    stuck_after_s: Annotated[float, Field(ge=1, le=86400)] = 600.0
    """separate: an engine is ended, and the run with it, if for so many seconds it has decoded not
    one token and answered nothing; a weight push must be done in this time."""
    overlap: bool = False
    """Sample the next step's votes during this step's update, with the weights from before it.
    The update then corrects for them as for its own clipping: by the ratio to the sampler."""
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
    workers: Count | None = None
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


class GuardSettings(Section):
    """Watches label-free signs of a collapse, and of votes without voters."""

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
    sampler_kl: Annotated[float, Field(ge=0)] = 0.01
    """Warn if the engine's log-probs are further than this from the policy's before a step's first
    update: mean k3 per token, in nats (at 0.01 they differ by about 0.14); 0: never."""
    abstention: Share = 0.9
    """Warn if more than this share of the completions yields no answer."""
    abstaining_steps: Annotated[int, Field(ge=0)] = 5
    """End the run after so many such steps in a row; 0: never."""


Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]


class LimitSettings(Section):
    """Seconds after which a phase counts as stuck: the run ends and says where it was."""

    start_s: Seconds = 3600
    """Loading the model and starting the engine."""
    push_s: Seconds = 1800
    """Bringing the policy's weights into the engine."""
    rollout_s: Seconds = 14400
    """Sampling and judging the votes of one step."""
    update_s: Seconds = 14400
    """The update of one step."""
    exam_s: Seconds = 43200
    """One measurement of one set of questions."""
    save_s: Seconds = 7200
    """Waiting for a checkpoint to be on disk, where the run must wait for it."""


class PolicySettings(Section):
    """The update."""

    backend: Literal["local", "zero3"] | None = None
    """local: one process, float32 weights. zero3: DeepSpeed, a share of everything on each rank.
    None: zero3 where a launcher started the run, else local."""
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
    loss: Literal["ppo_clip", "cispo", "none"] = "ppo_clip"
    """Policy term of a token, from the ratio policy / sampler r and the advantage A. ppo_clip: the
    worse of r x A and clip(r) x A. cispo: log-prob x A, weighted by clip(r): a clipped token keeps
    its gradient. none: r x A."""
    ratio_level: Literal["token", "sequence"] = "token"
    """Whether each token has its own ratio, or all of a sequence their geometric mean (GSPO, whose
    clips are of the order of 3e-4)."""
    clip_low: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, Field(ge=0)] = 0.2
    """The ratio is clipped above at 1 + clip_high."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Dual-clip PPO: bounds the loss of tokens with a negative advantage; None is off."""
    old_logprobs: Literal["sampler", "policy"] = "sampler"
    """What the PPO ratio is measured against: the log-probs that the engine sampled with, or the
    policy's own before a step's first update, which cost a forward pass for the later ones."""
    sampler_correction: Literal["none", "truncate", "mask"] = "none"
    """Weight of each token's policy term: policy / sampler before a step's first update.
    truncate: at most ``sampler_ratio_cap`` (TIS). mask: 0 where it is more than that or less than
    its inverse (IcePop). Needs ``old_logprobs = "policy"``."""
    sampler_ratio_cap: Annotated[float, Field(gt=1)] = 2.0
    """See ``sampler_correction``."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL penalty against the starting model. If > 0, a copy of it is kept in memory,
    except with ``lora_rank``."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Of a token's KL, with d = log-prob of the starting model - log-prob: k1: -d. k2: d² / 2. k3:
    exp(d) - d - 1."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """token_mean: every token of the update weighs the same (DAPO). sequence_mean: every
    sequence weighs the same (GRPO). constant: divided by sequences x max_new_tokens (Dr. GRPO)."""
    lora_rank: Count | None = None
    """Train low-rank adapters of this rank instead of all weights (LoRA); None: all weights. The
    base is then kept in ``model.dtype``, and serves as the KL reference without a copy."""
    lora_alpha: Annotated[float, Field(gt=0)] = 32.0
    """LoRA: the adapters' product is multiplied by lora_alpha / lora_rank."""
    lora_targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(strict=False)] = (
        "all-linear"
    )
    """LoRA: names of the layers with adapters, for example ["q_proj", "v_proj"]; all-linear: all
    but the output layer, which can have none."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    recompute_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """gradient_checkpointing: in this share of the layers; the last ones keep their activations."""
    liger_kernels: bool = False
    """On GPUs: liger-kernel's norms, rotary positions and MLPs, which keep fewer activations."""
    offload_optimizer: bool = False
    """zero3: the optimizer's state and its float32 copy of the weights are in the host's memory
    always, and AdamW runs on the CPU: less GPU memory, a slower update."""
    offload_during_rollout: bool = False
    """zero3 on GPUs: gradients, optimizer state and its copy of the weights wait in the host's
    memory while answers are sampled."""


class EvaluationSettings(Section):
    """Measurement against the answer key, before and after training."""

    samples: Count = 16
    """Answers per question; pass@1 is their mean, maj@k their vote."""
    temperature: Temperature = 0.6
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus sampling."""
    every: Annotated[int, Field(ge=0)] = 0
    """Also measure after every so many steps; 0: only before and after."""


class CheckpointSettings(Section):
    """What a run saves so that it can be continued, bit for bit: ``ttrl train ... --resume``."""

    every: Annotated[int, Field(ge=0)] = 10
    """Save after every so many steps, and after the last one; 0: never. One checkpoint takes 12
    bytes per trained parameter."""
    keep: Positive = 2
    """The last checkpoints that are kept."""
    best: Literal["none", "majority_ratio", "held_out"] = "none"
    """Also keep the best one. majority_ratio: that with the highest mean over the last pass,
    without the signs of a collapse (see ``guard``). held_out: that with the highest pass@1 on the
    held-out questions."""
    asynchronous: bool = True
    """Write while the run goes on, from a copy in the machine's memory; one at a time."""


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
    threads: Count | None = None
    """CPU threads; part of the settings because the last bit of a CPU sum depends on it."""
    rollout: RolloutSettings = RolloutSettings()
    answers: AnswerSettings = AnswerSettings()
    reward: RewardSettings = RewardSettings()
    guard: GuardSettings = GuardSettings()
    limits: LimitSettings = LimitSettings()
    policy: PolicySettings = PolicySettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()

    @property
    def longest(self) -> int:
        """How many tokens prompt and answer may have together, unless the model takes fewer."""
        return self.data.max_prompt_tokens + self.rollout.max_new_tokens

    @pydantic.model_validator(mode="after")
    def _rules(self) -> Self:
        """Rules that span sections, one line each; all broken ones are reported together."""
        rollout, policy, saving = self.rollout, self.policy, self.checkpoint
        default = PolicySettings()
        trained = rollout.questions_per_step * policy.trained_samples
        longest = self.longest
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
                    rollout.placement == "separate" or rollout.engines == 1,
                    f"rollout.engines = {rollout.engines} needs rollout.placement = "
                    '"separate": one process holds one engine',
                ),
                (
                    rollout.placement == "separate" or not rollout.engine_gpus,
                    f"rollout.engine_gpus = {list(rollout.engine_gpus)} needs "
                    'rollout.placement = "separate"',
                ),
                (
                    len(rollout.engine_gpus) % rollout.engines == 0,
                    f"rollout.engine_gpus = {list(rollout.engine_gpus)} names "
                    f"{len(rollout.engine_gpus)} GPUs, but rollout.engines = {rollout.engines}: "
                    "expected one for each, on each rank",
                ),
                (
                    policy.sampler_correction == "none" or policy.old_logprobs == "policy",
                    f'policy.sampler_correction = "{policy.sampler_correction}" needs '
                    'policy.old_logprobs = "policy": a ratio against the sampler\'s log-probs '
                    "already holds the mismatch",
                ),
                (
                    policy.dual_clip is None or policy.loss == "ppo_clip",
                    f'policy.dual_clip = {policy.dual_clip} needs policy.loss = "ppo_clip"',
                ),
                (
                    policy.kl_estimator == default.kl_estimator or policy.kl_coef > 0,
                    f'policy.kl_estimator = "{policy.kl_estimator}" needs policy.kl_coef above 0',
                ),
                (
                    not (policy.offload_optimizer and policy.offload_during_rollout),
                    "policy.offload_during_rollout = true has nothing to move from the GPU with "
                    "policy.offload_optimizer = true: unset one of them",
                ),
                (
                    policy.lora_rank is not None
                    or (policy.lora_alpha, policy.lora_targets)
                    == (default.lora_alpha, default.lora_targets),
                    "policy.lora_alpha and policy.lora_targets need policy.lora_rank: without it "
                    "all weights are trained",
                ),
                (
                    policy.gradient_checkpointing or policy.recompute_share == 1,
                    f"policy.recompute_share = {policy.recompute_share} needs "
                    "policy.gradient_checkpointing = true: without it nothing is recomputed",
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
                    not rollout.overlap or rollout.placement == "separate",
                    'rollout.overlap = true needs rollout.placement = "separate": an engine in the '
                    "trainer's process cannot sample while the policy is updated",
                ),
                (
                    rollout.tensor_parallel == 1 or rollout.placement == "colocated",
                    f"rollout.tensor_parallel = {rollout.tensor_parallel} needs "
                    'rollout.placement = "colocated": ranks share an engine',
                ),
                (
                    rollout.tensor_parallel == 1 or rollout.engine == "vllm",
                    f"rollout.tensor_parallel = {rollout.tensor_parallel} needs rollout.engine = "
                    '"vllm"',
                ),
                (
                    not rollout.overlap or self.reward.labels != "teacher",
                    'rollout.overlap = true leaves reward.labels = "teacher" no time to be asked: '
                    "unset one of them",
                ),
                (
                    saving.best != "held_out" or self._every_save_is_measured(),
                    f'checkpoint.best = "held_out" needs data.held_out, and every checkpoint '
                    f"measured: checkpoint.every = {saving.every} must be a multiple of "
                    f"evaluation.every = {self.evaluation.every}",
                ),
                (
                    not self.data.for_held_out or self.data.held_out is not None,
                    "data.for_held_out needs data.held_out",
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

    def _every_save_is_measured(self) -> bool:
        measured = self.evaluation.every
        return bool(self.data.held_out and measured) and self.checkpoint.every % measured == 0

    def to_toml(self) -> str:
        """The resolved settings; `load_settings` on this text gives equal settings."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


SHOWN = 200
"""Characters of a wrong value in a message."""


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
    given = repr(error["input"])
    if len(given) > SHOWN:
        given = f"{given[:SHOWN]}..."
    return f"{where} = {given}: {message[0].lower()}{message[1:]}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word; for a dotted key also by its last part, in whatever section."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    if not near:
        tails = {key.rpartition(".")[2]: key for key in known}
        near = [tails[t] for t in difflib.get_close_matches(word.rpartition(".")[2], tails, n=1)]
    return f" (did you mean {near[0]!r}?)" if near else ""
