"""A run of a benchmark that shows nothing and leaves nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:  # what lists runs, or shows them, starts without it
    from ttrl.api import Run


@contextmanager
def quiet_run(recipe: str, overrides: Sequence[str]) -> Iterator[Run]:
    """Train; the run's folder is there inside the context."""
    from ttrl.api import train

    with tempfile.TemporaryDirectory() as place:
        folder, console = Path(place) / "run", Console(quiet=True)
        yield train(recipe, overrides=overrides, run_dir=folder, console=console)
