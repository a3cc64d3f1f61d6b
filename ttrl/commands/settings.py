"""``ttrl settings``: what can be set, and what it means."""

from __future__ import annotations

import textwrap
from typing import Annotated, Literal

import typer

from ttrl.settings.errors import did_you_mean
from ttrl.settings.explained import explained_settings, settings_page
from ttrl.settings.foreign import theirs
from ttrl.types import UserError


def sections(incomplete: str) -> list[str]:
    """List the sections that begin so, for the shell's completion."""
    return [name for name in explained_settings() if name and name.startswith(incomplete)]


def settings(
    section: Annotated[
        str | None,
        typer.Argument(
            help="A section, for example rollout, or one setting, rollout.votes.",
            show_default="all of them",
            autocompletion=sections,
        ),
    ] = None,
    shown: Annotated[
        Literal["console", "markdown"],
        typer.Option("--format", help="markdown: all of them, as docs/settings.md."),
    ] = "console",
) -> None:
    """Explain settings: what each may be, its default, and what it does."""
    if shown == "markdown":
        print(settings_page(), end="")
        return
    found = explained_settings()
    if section in found:
        found = {section: found[section]}
    elif section is not None:
        one = {
            name: (about, [s for s in some if s.key == section])
            for name, (about, some) in found.items()
        }
        found = {name: (about, some) for name, (about, some) in one.items() if some}
        if not found:
            every = explained_settings()
            known = [*sections(""), *(s.key for _, some in every.values() for s in some)]
            raise UserError(
                f"there is no section or setting {section!r}"
                f"{theirs(section) or did_you_mean(section, known)}: `ttrl settings` lists all"
            )
    for name, (about, some) in found.items():
        print(textwrap.fill(f"[{name}] {about}" if name else about, 80))
        for s in some:
            default = f" = {s.default}" if s.default else ""
            named = textwrap.wrap(f"{s.key}{default}", 76, subsequent_indent="  ")
            print(f"\n{textwrap.indent(chr(10).join(named), '  ')}")
            for text in (f"({s.values})", s.meaning):
                print(textwrap.indent(textwrap.fill(text, 76), "    "))
        print()
