"""Rules that settings must keep between them: each yields what is wrong, and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ttrl.settings.agent_rules import agent_rules
from ttrl.settings.lora import LoraSettings
from ttrl.settings.loss import LossSettings
from ttrl.settings.per_agent_rules import per_agent_rules
from ttrl.settings.posed_rules import posed_rules
from ttrl.settings.reward import FREE_PASS_LABELS, TOKEN_ADVANTAGES
from ttrl.settings.rollout import MOST_TOP_K
from ttrl.settings.section import Section
from ttrl.settings.serve_rules import serve_rules
from ttrl.settings.stopping import StoppingSettings
from ttrl.settings.stream_rules import stream_rules

if TYPE_CHECKING:
    from ttrl.settings.settings import Settings

ALGORITHMS = {"grpo": "mean_std", "ppo": "gae", "prime": "prime"}
"""``reward.advantages`` of each algorithm, where that is not set by itself."""


def broken_rules(settings: Settings) -> Iterator[str]:
    """Yield a message for every rule that ``settings`` break."""
    yield from _data_rules(settings)
    yield from stream_rules(settings)
    yield from serve_rules(settings)
    yield from posed_rules(settings)
    yield from _rollout_rules(settings)
    yield from agent_rules(settings)
    yield from per_agent_rules(settings)
    yield from _overlap_rules(settings)
    yield from _extra_reward_rules(settings)
    yield from _update_rules(settings)
    yield from _loss_rules(settings.loss)
    yield from _credit_rules(settings)
    yield from _free_pass_rules(settings)
    yield from _sampler_rules(settings.loss)
    yield from _covariance_rules(settings.loss)
    yield from _memory_rules(settings)
    yield from _measurement_rules(settings)
    yield from _stopping_rules(settings)


def _stopping_rules(settings: Settings) -> Iterator[str]:
    stopping, name = settings.stopping, "stopping.by_votes = true"
    if not stopping.by_votes:
        if stopping != StoppingSettings():
            yield f"[stopping] needs {name}: without it nothing ends a run by its votes"
        return
    if settings.data.source != "list":
        yield f'{name} compares visits to a question: it needs data.source = "list"'
    if settings.guard.on_collapse == "stop":
        yield (
            f"{name} goes back to the best weights at a sign of a collapse, and "
            'guard.on_collapse = "stop" to others: leave that at "warn"'
        )


def _data_rules(settings: Settings) -> Iterator[str]:
    data, name = settings.data, settings.name
    if data.system_prompt is not None and not data.chat_template:
        yield "data.system_prompt needs data.chat_template = true"
    if data.chat_template_kwargs and not data.chat_template:
        yield "data.chat_template_kwargs needs data.chat_template = true"
    if len(set(data.ids)) < len(data.ids):
        yield f"data.ids = {list(data.ids)} names one twice: a step asks no question twice"
    if data.ids and data.source != "list":
        yield 'data.ids needs data.source = "list": it names questions of data.train'
    if data.ids and len(data.ids) < settings.rollout.questions_per_step:
        yield (
            f"rollout.questions_per_step = {settings.rollout.questions_per_step} is more than "
            f"data.ids names ({len(data.ids)}): lower it, and raise rollout.votes for as many "
            "answers in a step"
        )
    if data.for_held_out and data.held_out is None:
        yield "data.for_held_out needs data.held_out"
    if data.suffix.startswith("\\n"):
        yield (
            "data.suffix starts with a backslash and an n where a new line was meant: put it in "
            "double quotes, inside the shell's single quotes"
        )
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        yield f"name = {name!r} cannot name a folder"


def _rollout_rules(settings: Settings) -> Iterator[str]:
    rollout = settings.rollout
    gpus, shared = rollout.engine_gpus, rollout.tensor_parallel
    if rollout.placement == "colocated" and rollout.engines != 1:
        yield (
            f'rollout.engines = {rollout.engines} needs rollout.placement = "separate": one '
            "process holds one engine"
        )
    if rollout.placement == "colocated" and gpus:
        yield f'rollout.engine_gpus = {list(gpus)} needs rollout.placement = "separate"'
    if len(gpus) % rollout.engines:
        yield (
            f"rollout.engine_gpus = {list(gpus)} names {len(gpus)} GPUs, but rollout.engines = "
            f"{rollout.engines}: expected one for each, on each rank"
        )
    if shared != 1 and rollout.placement != "colocated":
        yield (
            f'rollout.tensor_parallel = {shared} needs rollout.placement = "colocated": ranks '
            "share an engine"
        )
    for name, unused in (("top_p", 1.0), ("min_p", 0.0)):
        value = getattr(rollout, name)
        if value != unused and rollout.top_k == 0:
            yield (
                f"rollout.{name} = {value} needs rollout.top_k, 1 to {MOST_TOP_K}: the tokens that "
                "were left are noted for the loss, and without it there is no limit to their number"
            )
    if rollout.stop_when_decided and rollout.workflow != "single_turn":
        yield (
            'rollout.stop_when_decided = true needs rollout.workflow = "single_turn": of '
            f"{rollout.workflow!r} nobody knows which answers will vote"
        )
    if settings.reward.advantages == "remax" and rollout.workflow != "single_turn":
        yield (
            'reward.advantages = "remax" needs rollout.workflow = "single_turn", as which its '
            f"greedy answer is sampled; it is {rollout.workflow!r}"
        )
    if rollout.resample_rounds and settings.reward.labels == "teacher":
        yield (
            f"rollout.resample_rounds = {rollout.resample_rounds} would bring the engine to the "
            'weights of reward.labels = "teacher" and back in each round: unset one of them'
        )
    if shared != 1 and rollout.engine != "vllm":
        yield f'rollout.tensor_parallel = {shared} needs rollout.engine = "vllm"'


def _overlap_rules(settings: Settings) -> Iterator[str]:
    if settings.rollout.overlap and settings.rollout.placement != "separate":
        yield (
            'rollout.overlap = true needs rollout.placement = "separate": an engine in the '
            "trainer's process cannot sample while the policy is updated"
        )
    if settings.rollout.overlap and settings.reward.labels == "teacher":
        yield (
            'rollout.overlap = true leaves reward.labels = "teacher" no time to be asked: unset '
            "one of them"
        )


def _extra_reward_rules(settings: Settings) -> Iterator[str]:
    reward, longest = settings.reward, settings.rollout.max_new_tokens
    buffer, each = reward.overlong_buffer, reward.extra_aggregation == "normalize_then_sum"
    if ("soft_overlong" in reward.extra) != (buffer is not None):
        yield (
            f"reward.extra = {reward.extra} and reward.overlong_buffer = {buffer}: soft_overlong "
            "and its buffer need each other; set both, or neither"
        )
    elif buffer is not None and buffer > longest:
        yield (
            f"reward.overlong_buffer = {buffer} is more than rollout.max_new_tokens = {longest}: "
            "even the shortest answer would be too long"
        )
    if each and not reward.extra:
        yield 'reward.extra_aggregation = "normalize_then_sum" needs reward.extra: there is no sum'
    if each and reward.advantages != "mean_std":
        yield (
            'reward.extra_aggregation = "normalize_then_sum" needs reward.advantages = "mean_std", '
            f'got "{reward.advantages}": it is how GDPO normalizes each reward'
        )
    if reward.extra and reward.advantages == "remax":
        yield (
            'reward.advantages = "remax" compares with whether a greedy answer agrees, and knows '
            "nothing of reward.extra: unset one of them"
        )
    if reward.extra and reward.advantages == "prime":
        yield (
            'reward.advantages = "prime" learns to predict rewards of 0 to 1, which reward.extra '
            "may leave: unset one of them"
        )
    if reward.extra and reward.advantages == "max_rl":
        yield (
            'reward.advantages = "max_rl" divides by the mean reward, which reward.extra may bring '
            "below 0: unset one of them"
        )


def _update_rules(settings: Settings) -> Iterator[str]:
    rollout, policy, room = settings.rollout, settings.policy, settings.memory.tokens_per_batch
    trained = rollout.questions_per_step * policy.trained_samples
    if settings.data.source == "self_posed" and settings.posed.weight > 0:
        trained += settings.posed.prompts * settings.posed.proposals
    if policy.trained_samples > rollout.votes:
        yield (
            f"policy.trained_samples = {policy.trained_samples} is more than rollout.votes = "
            f"{rollout.votes}: only sampled answers can be trained on; set {rollout.votes} or less"
        )
    if policy.sequences_per_update > trained:
        yield (
            f"policy.sequences_per_update = {policy.sequences_per_update} is more than a step's "
            f"{trained} trained sequences (rollout.questions_per_step x policy.trained_samples): "
            f"an update would never fill; set {trained} or less"
        )
    if room < settings.longest:
        yield (
            f"memory.tokens_per_batch = {room} cannot hold one sequence of {settings.longest} "
            "tokens (data.max_prompt_tokens + rollout.max_new_tokens): raise it, or lower one of "
            "those"
        )


def _loss_rules(loss: LossSettings) -> Iterator[str]:
    if loss.dual_clip is not None and loss.policy != "ppo_clip":
        yield f'loss.dual_clip = {loss.dual_clip} needs loss.policy = "ppo_clip"'
    if loss.policy == "gmpo" and loss.ratio_level == "sequence":
        yield (
            'loss.ratio_level = "sequence" has no meaning with loss.policy = "gmpo", which makes '
            "one ratio for a sequence by itself: unset it"
        )
    if loss.kl_coef == 0 and (
        which := _changed("loss", loss, "kl_estimator", "kl_bias_correction")
    ):
        yield f"{which} needs loss.kl_coef above 0"
    if loss.entropy_target is None and (
        which := _changed("loss", loss, "entropy_coef_step", "entropy_coef_max")
    ):
        yield f"{which} needs loss.entropy_target"
    if loss.entropy_target is not None and loss.entropy_coef > loss.entropy_coef_max:
        yield (
            f"loss.entropy_coef = {loss.entropy_coef} is more than loss.entropy_coef_max = "
            f"{loss.entropy_coef_max}: lower it, or raise that"
        )


def _sampler_rules(loss: LossSettings) -> Iterator[str]:
    if loss.sampler_correction != "none" and loss.old_logprobs != "policy":
        yield (
            f'loss.sampler_correction = "{loss.sampler_correction}" needs loss.old_logprobs = '
            '"policy": a ratio against the sampler\'s log-probs already holds the mismatch'
        )
    if loss.sampler_correction == "none" and (
        which := _changed("loss", loss, "sampler_level", "sampler_normalize")
    ):
        yield f"{which} needs loss.sampler_correction"
    if loss.sampler_ratio_floor is not None and loss.sampler_correction != "mask":
        yield (
            f"loss.sampler_ratio_floor = {loss.sampler_ratio_floor} needs loss.sampler_correction "
            '= "mask"'
        )
    if loss.sampler_rejection != "none" and loss.sampler_rejection_bound is None:
        yield (
            f'loss.sampler_rejection = "{loss.sampler_rejection}" needs '
            "loss.sampler_rejection_bound, in nats"
        )
    if loss.sampler_rejection == "none" and (
        which := _changed("loss", loss, "sampler_rejection_kl", "sampler_rejection_bound")
    ):
        yield f"{which} needs loss.sampler_rejection"


def _covariance_rules(loss: LossSettings) -> Iterator[str]:
    needed = {"clip": "ppo_clip", "kl": "none"}.get(loss.covariance, loss.policy)
    if loss.policy != needed:
        yield (
            f'loss.covariance = "{loss.covariance}" needs loss.policy = "{needed}", not '
            f'"{loss.policy}"'
        )
    if loss.covariance == "none" and (which := _changed("loss", loss, "covariance_share")):
        yield f"{which} needs loss.covariance"
    if loss.covariance != "clip" and (which := _changed("loss", loss, "covariance_bounds")):
        yield f'{which} needs loss.covariance = "clip"'
    if loss.covariance != "kl" and (which := _changed("loss", loss, "covariance_kl_coef")):
        yield f'{which} needs loss.covariance = "kl"'
    low, high = loss.covariance_bounds
    if not low < high:
        yield f"loss.covariance_bounds = [{low}, {high}]: expected the lower one first"


def _changed(name: str, section: Section, *fields: str) -> str:
    """Return the first of these settings, with its value, that is not its default; or ""."""
    default = type(section)()
    for field in fields:
        if (value := getattr(section, field)) != getattr(default, field):
            return f"{name}.{field} = {json.dumps(value)}"
    return ""


def _credit_rules(settings: Settings) -> Iterator[str]:
    reward, used = settings.reward, settings.reward.advantages
    for kind, name in (("gae", "critic"), ("prime", "prime")):
        section = getattr(settings, name)
        if section != type(section)() and used != kind:
            yield f'[{name}] needs reward.advantages = "{kind}" (it is "{used}")'
    if reward.kl_coef > 0 and used != "gae":
        yield (
            f'reward.kl_coef = {reward.kl_coef} needs reward.advantages = "gae": elsewhere an '
            "answer has one reward, not one per token; set loss.kl_coef"
        )
    kind = used if used in TOKEN_ADVANTAGES else "mean_std"
    if settings.algorithm and ALGORITHMS[settings.algorithm] != kind:
        yield (
            f'algorithm = "{settings.algorithm}" contradicts reward.advantages = "{used}": unset '
            "one of them"
        )
    for name in ("kl_estimator", "kl_target", "kl_horizon"):
        if reward.kl_coef == 0 and (which := _changed("reward", reward, name)):
            yield f"{which} needs reward.kl_coef above 0"
    if reward.kl_target is None and (which := _changed("reward", reward, "kl_horizon")):
        yield f"{which} needs reward.kl_target"
    if settings.prime.process_coef == settings.prime.outcome_coef == 0:
        yield "prime.process_coef = prime.outcome_coef = 0: nothing would be worth anything"
    if used == "prime" and settings.policy.trained_samples == 1:
        yield (
            'reward.advantages = "prime" compares each answer with the others that are trained '
            "on: set policy.trained_samples to 2 or more"
        )


def _free_pass_rules(settings: Settings) -> Iterator[str]:
    rollout, used, longest = settings.rollout, settings.reward.labels, settings.longest
    for name in FREE_PASS_LABELS:
        section = getattr(settings, name)
        if section != type(section)() and used != name:
            yield f'[{name}] needs reward.labels = "{name}" (it is "{used}")'
    if used not in FREE_PASS_LABELS:
        return
    if rollout.stop_when_decided:
        yield (
            f'rollout.stop_when_decided = true would decide by votes, but reward.labels = "{used}" '
            "looks at all answers: unset one of them"
        )
    own = settings.harmony.paraphrase != "policy"
    if own and (which := _changed("harmony", settings.harmony, "tokens")):
        yield f'{which} needs harmony.paraphrase = "policy"'
    replies = {
        "harmony.tokens": 0 if own else settings.harmony.tokens,
        "reflection.tokens": settings.reflection.tokens,
        "reflection.summary_tokens": settings.reflection.summary_tokens,
    }
    for name, tokens in replies.items():
        if name.startswith(used) and tokens >= longest:
            yield (
                f"{name} = {tokens} leaves no room for a prompt within {longest} tokens "
                "(data.max_prompt_tokens + rollout.max_new_tokens): lower it"
            )


def _memory_rules(settings: Settings) -> Iterator[str]:
    memory, lora, default = settings.memory, settings.lora, LoraSettings()
    if memory.offload_optimizer and memory.offload_during_rollout:
        yield (
            "memory.offload_during_rollout = true has nothing to move from the GPU with "
            "memory.offload_optimizer = true: unset one of them"
        )
    if memory.recompute_share != 1 and not memory.gradient_checkpointing:
        yield (
            f"memory.recompute_share = {memory.recompute_share} needs "
            "memory.gradient_checkpointing = true: without it nothing is recomputed"
        )
    adapted = (lora.alpha, lora.targets) != (default.alpha, default.targets)
    if lora.rank is None and adapted:
        yield "lora.alpha and lora.targets need lora.rank: without it all weights are trained"


def _measurement_rules(settings: Settings) -> Iterator[str]:
    reward, saving, measured = settings.reward, settings.checkpoint, settings.evaluation.every
    trackers = list(settings.tracking.trackers)
    if len(set(trackers)) < len(trackers):
        yield f"tracking.trackers = {trackers} names one twice"
    if reward.labels == "ground_truth" and not reward.allow_ground_truth:
        yield (
            'reward.labels = "ground_truth" trains on the reference answers: if that is meant, set '
            "reward.allow_ground_truth = true"
        )
    each_is_measured = settings.data.held_out and measured and saving.every % measured == 0
    if saving.best == "held_out" and not each_is_measured:
        yield (
            'checkpoint.best = "held_out" needs data.held_out, and every checkpoint measured: '
            f"checkpoint.every = {saving.every} must be a multiple of evaluation.every = {measured}"
        )
