"""Rules for questions that arrive while the run goes on: what does not go with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ttrl.settings.optimizer import OptimizerSettings
from ttrl.settings.reward import TOKEN_ADVANTAGES
from ttrl.settings.stream import StreamSettings

if TYPE_CHECKING:
    from ttrl.settings.settings import Settings


def stream_rules(settings: Settings) -> Iterator[str]:
    """Yield a message for every rule of ``data.source`` and ``[stream]`` that is broken."""
    if settings.data.source != "stream":
        if settings.stream != StreamSettings():
            yield '[stream] needs data.source = "stream" (it is "list")'
        return
    yield from _question_rules(settings)
    yield from _rate_rules(settings)
    if settings.stream.reset == "per_question":
        yield from _reset_rules(settings)


def _question_rules(settings: Settings) -> Iterator[str]:
    data, stream, rollout = settings.data, settings.stream, settings.rollout
    if data.train.partition(":")[0] in ("arithmetic", "hub"):
        yield (
            f'data.source = "stream" reads a .jsonl file, a folder or "-", got data.train = '
            f'"{data.train}", which is all there: set data.source = "list"'
        )
    if settings.epochs != 1:
        yield (
            f'epochs = {settings.epochs} has no meaning with data.source = "stream", which is read '
            "once: set epochs = 1, and max_steps where it should end"
        )
    if stream.queue < rollout.questions_per_step:
        yield (
            f"stream.queue = {stream.queue} is less than rollout.questions_per_step = "
            f"{rollout.questions_per_step}: a step could never be full; raise it"
        )
    if data.train == "-" and stream.idle_s is not None:
        yield (
            f'stream.idle_s = {stream.idle_s:g} needs a file or a folder: data.train = "-", '
            "standard input, ends when its writer closes it"
        )
    if settings.max_steps is not None and settings.max_steps % stream.visits:
        yield (
            f"max_steps = {settings.max_steps} would end among the stream.visits = {stream.visits} "
            "steps of a question: set a multiple of it"
        )
    if rollout.overlap:
        yield (
            'rollout.overlap = true would have to know the next questions of data.source = "stream"'
            " before they have come, and answer them with older weights: unset one of them"
        )
    if rollout.resample_rounds:
        yield (
            f"rollout.resample_rounds = {rollout.resample_rounds} would ask further questions in "
            'place of those of a step: data.source = "stream" answers each in its turn, and once; '
            "unset one of them"
        )
    if settings.reward.labels == "ground_truth":
        yield (
            'reward.labels = "ground_truth" needs a list whose answers are known beforehand: with '
            'data.source = "stream" answers are for metrics only; unset one of them'
        )


def _rate_rules(settings: Settings) -> Iterator[str]:
    """Yield what is wrong with a schedule of a run whose end is not known."""
    own, default, stream = settings.optimizer, OptimizerSettings(), settings.stream
    if settings.max_steps is not None and stream.reset == "never":
        if stream.warmup_steps:
            yield (
                f"stream.warmup_steps = {stream.warmup_steps} is for a stream without an end: with "
                "max_steps the learning rate goes by optimizer.warmup_share"
            )
        return
    why = 'without max_steps, nobody knows how many steps data.source = "stream" has'
    if stream.reset == "per_question":
        why = 'with stream.reset = "per_question" each question has a schedule of its own'
    if own.warmup_share != default.warmup_share:
        yield (
            f"optimizer.warmup_share = {own.warmup_share:g} is a share of a run's steps, and {why}"
            f": set it to its default {default.warmup_share:g}, and stream.warmup_steps instead"
        )
    if own.final_lr_share not in (default.final_lr_share, 1.0):
        yield (
            f"optimizer.final_lr_share = {own.final_lr_share:g} is what the learning rate falls to "
            f"at a run's end, and {why}: set it to its default {default.final_lr_share:g}; the "
            "rate stays where it is"
        )


def _reset_rules(settings: Settings) -> Iterator[str]:
    stream, reward = settings.stream, settings.reward
    name = 'stream.reset = "per_question"'
    if settings.lora.rank is None:
        yield f"{name} needs lora.rank: it puts back the adapters that a question has moved"
    if settings.rollout.questions_per_step != 1:
        yield (
            f"{name} needs rollout.questions_per_step = 1, got "
            f"{settings.rollout.questions_per_step}: a question would learn from its neighbours; "
            "set it to 1"
        )
    if stream.warmup_steps and stream.warmup_steps >= stream.visits:
        yield (
            f"stream.warmup_steps = {stream.warmup_steps} leaves none of the stream.visits = "
            f"{stream.visits} steps of a question at the full learning rate: lower it"
        )
    moves = {
        f'reward.advantages = "{reward.advantages}"': reward.advantages in TOKEN_ADVANTAGES,
        f"reward.teacher_decay = {reward.teacher_decay:g}": reward.labels == "teacher"
        and reward.teacher_decay < 1,
        f"loss.entropy_target = {settings.loss.entropy_target}": settings.loss.entropy_target
        is not None,
    }
    for what, is_set in moves.items():
        if is_set:
            yield (
                f"{name} puts back the policy's adapters and their optimizer alone, and {what} "
                "would learn on from question to question: unset one of them"
            )
    if settings.guard.on_collapse == "stop":
        yield (
            f'guard.on_collapse = "stop" goes back to earlier weights, and with {name} every '
            "question begins with the first ones: unset one of them"
        )
    if settings.checkpoint.best != "none":
        yield (
            f'checkpoint.best = "{settings.checkpoint.best}" compares weights, and with {name} all '
            "questions begin with the same: unset one of them"
        )
