"""Functions of the user's that look at each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ttrl.settings.plugins import errors_as_user_error
from ttrl.system.ranks import Ranks
from ttrl.types import StepResult, UserError

Callback = Callable[[StepResult], str | None]
"""Function that is called after each step, on every rank; a reason it returns stops the run."""


def ask_callbacks(callbacks: Sequence[Callback], result: StepResult, ranks: Ranks) -> str | None:
    """Call the user's functions after a step; return the first reason to stop, on all ranks.

    Raises:
        UserError: for what one of them raises, and for a result that is no reason.
    """
    reasons: list[str] = []
    for callback in callbacks:
        name = getattr(callback, "__qualname__", type(callback).__qualname__)
        with errors_as_user_error(name, "callback"):
            found = callback(result)
        if not isinstance(found, str | None):
            raise UserError(f"callback {name!r} returned {found!r}: expected None, or why to stop")
        reasons += [] if found is None else [found]
    said = [reason for part in ranks.gather(reasons) for reason in part]
    return said[0] if said else None
