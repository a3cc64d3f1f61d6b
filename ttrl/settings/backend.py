"""The backend that holds the trained model, and what "local" cannot do."""

from __future__ import annotations

from typing import Literal

from ttrl.settings.settings import Settings
from ttrl.types import UserError

Backend = Literal["local", "zero3"]


def backend_of(settings: Settings, *, launched: bool) -> Backend:
    """Return ``policy.backend``; where it is None, ZeRO-3 if a launcher started the run."""
    return settings.policy.backend or ("zero3" if launched else "local")


def refuse_for_local(settings: Settings, count: int, counted: str, instead: str) -> None:
    """Refuse what only ZeRO-3 can do, where the backend is "local".

    Args:
        settings: of the run.
        count: processes.
        counted: completes "in one process, but 8 …".
        instead: completes "set policy.backend = "zero3", or …".

    Raises:
        UserError: for memory settings that are without effect, and for several processes.
    """
    for name in ("offload_during_rollout", "offload_optimizer"):
        if getattr(settings.memory, name):
            raise UserError(
                f'memory.{name} = true: expected policy.backend = "zero3", whose memory it is '
                'about; policy.backend = "local" keeps all in one place: unset it'
            )
    if count > 1:
        raise UserError(
            f'policy.backend = "local" holds the policy in one process, but {count} {counted}; set '
            f'policy.backend = "zero3", or {instead}'
        )
