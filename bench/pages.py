"""Tables of a benchmark in the page that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ttrl.report.tables import TextTable


def marked(name: str, tables: Sequence[TextTable]) -> str:
    """Return tables as they stand in a page, between the marks of a script."""
    shown = "\n\n".join(table.markdown().strip() for table in tables)
    return f"<!-- tables of {name} -->\n\n{shown}\n\n<!-- end of {name} -->"


def write_into(page: Path, name: str, tables: Sequence[TextTable]) -> None:
    """Replace a script's tables in a page."""
    text = page.read_text(encoding="utf-8")
    before, begun, rest = text.partition(f"<!-- tables of {name} -->")
    _, ended, after = rest.partition(f"<!-- end of {name} -->")
    if not (begun and ended):
        raise SystemExit(f"{page}: expected the marks <!-- tables of {name} --> and its end")
    page.write_text(before + marked(name, tables) + after, encoding="utf-8")
