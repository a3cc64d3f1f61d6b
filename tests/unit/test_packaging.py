"""What a wheel carries."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from ttrl.report.page.page import SCRIPTS

ROOT = Path(__file__).parents[2]


def test_wheel_carries_recipes_and_the_tiny_models(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--wheel-dir", str(tmp_path), str(ROOT)],
        check=True,
        timeout=300,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("ttrl-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    recipes = {str(p.relative_to(ROOT)) for p in (ROOT / "ttrl" / "recipes").rglob("*.toml")}
    base = {str(p.relative_to(ROOT)) for p in (ROOT / "ttrl" / "data" / "tiny_base").iterdir()}
    base |= {str(p.relative_to(ROOT)) for p in (ROOT / "ttrl" / "data" / "tiny_prm").iterdir()}
    page = {f"ttrl/report/page/{name}" for name in ("page.html.j2", "page.css", *SCRIPTS)}
    assert len(recipes) == 35
    assert {Path(name).name for name in base} >= {"model.safetensors", "tokenizer.json"}
    assert set(names) >= recipes | base | page | {"ttrl/py.typed", "ttrl_kernels/py.typed"}
    assert not [n for n in names if n.startswith(("tests", "kernels", "bench"))]


def test_the_tiny_models_are_small() -> None:
    for name, most in (("tiny_base", 3_000_000), ("tiny_prm", 1_000_000)):
        files = (ROOT / "ttrl" / "data" / name).iterdir()
        assert sum(f.stat().st_size for f in files) < most
