"""A table of text, for the screen, Markdown or LaTeX."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

Format = Literal["console", "markdown", "latex", "json"]
"""How results are written; json has the numbers, with more digits and question by question."""

LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "→": r"$\rightarrow$",
    "±": r"$\pm$",
}
"""What stands for a character in LaTeX; the others stand for themselves."""


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table whose first column names the rows.

    Example: ``TextTable("AIME", ("", "pass@1"), (("base", "12.9"),)).markdown()``.
    """

    title: str
    """What is above it."""
    columns: tuple[str, ...]
    """Names of the columns."""
    rows: tuple[tuple[str, ...], ...]
    """The cells; names from data sets are shown as they are written."""
    notes: tuple[str, ...] = ()
    """Sentences under it."""

    def show(self, console: Console) -> None:
        """Print the table on a screen."""
        table = Table(title=Text(printable(self.title), style="table.title"))
        for place, column in enumerate(map(printable, self.columns)):
            table.add_column(Text(column), justify="right" if place else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console.print(table)
        for note in self.notes:
            console.print(printable(note), highlight=False, markup=False)

    def markdown(self) -> str:
        """Return the table as GitHub's Markdown."""
        lines = (
            f"**{escaped(self.title)}**\n",
            _line(self.columns),
            _line(("---", *["---:"] * (len(self.columns) - 1))),
            *map(_line, self.rows),
            *(f"\n{escaped(note)}" for note in self.notes),
        )
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """Return the table for LaTeX, with the rules of the package booktabs."""
        head = " & ".join(map(_latex, self.columns))
        lines = (
            rf"\begin{{table}}\caption{{{_latex(self.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
            rf"\toprule {head} \\ \midrule",
            *(" & ".join(map(_latex, row)) + r" \\" for row in self.rows),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par {_latex(note)}" for note in self.notes),
            r"\end{table}",
        )
        return "\n".join(lines) + "\n"


def write(tables: Sequence[TextTable], shown: Format) -> None:
    """Print tables to stdout; as JSON, a list of objects with their cells."""
    if shown == "json":
        print(json.dumps([asdict(table) for table in tables], indent=2))
        return
    console = Console(emoji=False)
    for table in tables:
        if shown == "console":
            table.show(console)
        else:
            print(table.markdown() if shown == "markdown" else table.latex())


def printable(text: str) -> str:
    """Return a text whose characters that control a terminal are shown by their codes.

    So are those that turn the direction of text, or are not to be seen; ends of lines stay.
    """
    return "".join(c if c.isprintable() or c in "\n\t\xa0" else f"U+{ord(c):04X}" for c in text)


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"


def escaped(text: str) -> str:
    """Write text so that Markdown shows it as it is; no level or file name becomes a link.

    Characters that are not to be seen, or turn the direction of text, are shown by their codes.
    """
    seen = printable(" ".join(text.split()))
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", seen)


def _latex(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in " ".join(text.split()))
