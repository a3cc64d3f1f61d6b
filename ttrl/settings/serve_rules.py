"""Rules for questions that are sent to a server: what does not go with answering beside updates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ttrl.settings.serve import ServeSettings

if TYPE_CHECKING:
    from ttrl.settings.settings import Settings

SENT = "http"
"""What ``data.train`` calls rows that are sent to a server, each by itself."""


def serves(settings: Settings) -> bool:
    """Say whether the settings are those of a server."""
    return settings.data.source == "stream" and settings.data.train == SENT


def serve_rules(settings: Settings) -> Iterator[str]:
    """Yield a message for every rule of ``data.train`` = "http" and ``[serve]`` that is broken."""
    if not serves(settings):
        if settings.serve != ServeSettings():
            yield f'[serve] is for ttrl serve: it needs data.train = "{SENT}", of a stream'
        return
    data, stream, rollout = settings.data, settings.stream, settings.rollout
    why = 'and with data.train = "http" answers are given while the trainer learns'
    refused = {
        f"data.held_out = {data.held_out!r} is measured with the engine, {why}: set it to none, "
        "and use ttrl eval on the model": data.held_out is not None,
        f"stream.visits = {stream.visits} asks a question again, {why}: set it to 1": (
            stream.visits > 1
        ),
        f'stream.reset = "{stream.reset}" learns from a question before the next one, {why}: set '
        "it to never": stream.reset != "never",
        f"stream.idle_s = {stream.idle_s} ends a file or a folder: a server ends when it is "
        "stopped; unset it": stream.idle_s is not None,
        f"max_steps = {settings.max_steps} ends a run: a server ends when it is stopped; unset "
        "it": settings.max_steps is not None,
        f'rollout.engine = "vllm" gives the trainer its memory while that learns, {why}: set '
        'rollout.placement = "separate", or rollout.engine = "transformers"': (
            rollout.engine == "vllm" and rollout.placement == "colocated"
        ),
        f'reward.labels = "teacher" has another model at the engine, {why}: unset it': (
            settings.reward.labels == "teacher"
        ),
        'policy.backend = "zero3" trains in several processes, and a server answers from one: set '
        "it to local, with lora.rank where memory is short": settings.policy.backend == "zero3",
    }
    yield from (message for message, is_so in refused.items() if is_so)
