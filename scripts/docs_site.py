"""What MkDocs cannot find in docs/ by itself: pages and results that lie elsewhere in the checkout.

mkdocs.yml names this file as a hook. On the site the README is the first page, and links to the
root of the repository are links to the site's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "index.md": "README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "bench/README.md": "bench/README.md",
}
"""Name on the site -> file in the repository."""
SHOWN_AS_THEY_ARE = ("bench/results/*.json", "examples/*.py", "LICENSE")


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the files that lie elsewhere."""
    for name, source in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    for pattern in SHOWN_AS_THEY_ARE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links between root and docs/ point to where both are one."""
    markdown = (
        re.sub(r"\]\(\.\./(?=\w)", "](", markdown) if "/" not in page.file.src_uri else markdown
    )
    return re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown).replace("](README.md", "](index.md")
