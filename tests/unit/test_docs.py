"""The documents: what they quote exists, and the site is built from them without a warning."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def said_by_the_code() -> str:
    """All string constants of ttrl, one after the other."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "ttrl").rglob("*.py"))
    return "\n".join(
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_each_quoted_message_is_one() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [part for bold in re.findall(r"^\*\*.*", page, re.M) for part in quotes(bold)]
    assert len(quoted) >= 14
    said = said_by_the_code()
    assert [message for message in quoted if message not in said] == []


def quotes(line: str) -> list[str]:
    """What a line has in bold and as code."""
    return [code for bold in re.findall(r"\*\*(.+?)\*\*", line) for code in bold.split("`")[1::2]]


def test_every_page_is_in_the_navigation() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [p.name for p in sorted(DOCS.glob("*.md")) if f"- {p.name}" not in site] == []


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")
    first = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'href="losses/' in first and "docs/losses" not in first
    assert "http" not in re.sub(r'href="https?://[^"]*"', "", first).partition("<body")[0]
