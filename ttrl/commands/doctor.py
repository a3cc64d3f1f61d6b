"""``ttrl doctor``: what works on this machine."""

from __future__ import annotations

import typer


def doctor() -> None:
    """Show what is installed, what each part can do on this machine, and why not."""
    from rich.console import Console

    from ttrl.doctor.doctor import report

    healthy = report(Console(emoji=False))
    raise typer.Exit(0 if healthy else 1)
