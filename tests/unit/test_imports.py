"""Who may import whom: the direction of imports, and what must not be imported at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_runs import small_run

ROOT = Path(__file__).parents[2]

# A part of ttrl imports its own layer and those below, never one above.
LAYERS = (
    {"cli"},
    {"commands"},
    {"__init__", "api", "integrations", "reproduce", "scaling"},
    {"trainer"},
    {"build"},
    {"run", "evaluation", "plan", "doctor", "selection", "stream", "serve", "search"},
    {"credit", "rewards", "rollout", "learner", "data", "posed", "reward_models"},
    {"answers", "models"},
    {"settings", "system", "report"},
    {"types"},
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

# Only where they are used: they take seconds to import, or are not installed.
OPTIONAL = {"vllm", "deepspeed", "peft", "flash_attn", "liger_kernel"}
OPTIONAL |= {"wandb", "tensorboard", "mlflow", "trackio", "trl"}


def sources(package: Path) -> dict[str, ast.Module]:
    """Relative path -> syntax tree of each Python file."""
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(package.rglob("*.py"))
    }


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all modules that a tree imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used, and would escape this test"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_at_once(tree: ast.Module) -> Iterator[str]:
    """Those of them that run when the module is imported."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imported(node)
        waiting += ast.iter_child_nodes(node)


TTRL = sources(ROOT / "ttrl")
KERNELS = sources(ROOT / "kernels" / "ttrl_kernels")


def part_of(path: str) -> str:
    return Path(path).parts[1].removesuffix(".py")


def edges() -> set[tuple[str, str, str]]:
    """(file, its part, the part it imports)."""
    return {
        (path, part_of(path), name.split(".")[1])
        for path, tree in TTRL.items()
        for name in imported(tree)
        if name.startswith("ttrl.")
    }


def test_every_part_of_ttrl_has_its_layer() -> None:
    parts = {part_of(path) for path in TTRL}
    assert parts == set(LEVEL), "put a new part in LAYERS, and the design's drawing"


def test_imports_point_down_the_layers() -> None:
    upward = {(f, to) for f, part, to in edges() if to in LEVEL and LEVEL[to] < LEVEL[part]}
    assert upward == set()


def test_parts_of_one_layer_do_not_import_each_other_in_a_circle() -> None:
    needs = {part: {to for _, p, to in edges() if p == part and to in LEVEL} for part in LEVEL}
    for part in LEVEL:
        reached: set[str] = set()
        waiting = needs[part] - {part}
        while waiting:
            reached |= waiting
            waiting = set().union(*(needs[p] for p in waiting)) - reached
        assert part not in reached


def test_only_what_computes_with_the_kernels_or_plans_them_imports_them() -> None:
    users = {
        part_of(path)
        for path, tree in TTRL.items()
        if any(name.split(".")[0] == "ttrl_kernels" for name in imported(tree))
    }
    assert users == {"credit", "integrations", "learner", "models", "doctor", "plan"}


def test_the_kernels_import_torch_and_triton_only() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "triton", "ttrl_kernels"}
    foreign = {
        (path, name)
        for path, tree in KERNELS.items()
        for name in imported(tree)
        if name.split(".")[0] not in allowed
    }
    assert foreign == set()


@pytest.mark.parametrize("package", ["ttrl", "kernels"])
def test_optional_packages_are_imported_where_they_are_used(package: str) -> None:
    at_once = {
        (path, name)
        for path, tree in (TTRL if package == "ttrl" else KERNELS).items()
        for name in imported_at_once(tree)
        if name.split(".")[0] in OPTIONAL
    }
    assert at_once == set()


def run_python(code: str, *, cwd: Path = ROOT) -> str:
    """What a fresh interpreter prints that was started in ``cwd``."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_folder_kernels_does_not_pose_as_the_package_of_that_name() -> None:
    """transformers does ``from kernels import ...`` where Hugging Face's kernels is installed."""
    origin = run_python(
        "import importlib.util\n"
        "spec = importlib.util.find_spec('kernels')\n"
        "print(None if spec is None else spec.origin)"
    )
    assert origin == "None" or "site-packages" in origin
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_the_command_line_starts_without_the_heavy_packages() -> None:
    """Help, dry runs and wrong settings answer at once."""
    loaded = run_python(
        "import sys\n"
        "import ttrl.cli\n"
        "from ttrl.settings.recipe import load_settings\n"
        "load_settings('tiny-arithmetic').to_toml()\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pandas', 'sympy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert loaded == "[]"


def test_reading_runs_needs_no_torch(tmp_path: Path) -> None:
    """Importing torch and transformers takes longer than any of these commands."""
    run, other = (small_run(tmp_path / name).path for name in ("run", "other"))
    commands = {
        "runs": [str(tmp_path)],
        "compare": [str(run), str(other)],
        "show": [str(run)],
        "report": [str(run), str(other), "--out", str(tmp_path / "both.html")],
        "settings": ["rollout"],
        "train": ["tiny-arithmetic", "--run-dir", str(run)],  # which is there
    }
    absent = [
        "tiny-arithmetic",
        "--run-dir",
        str(tmp_path / "new"),
        "--set",
        "data.held_out=no.csv",
    ]
    none = ["tiny-arithmetic", "--resume", "--run-dir", str(tmp_path / "new")]
    finished = ["--resume", str(run)]
    refused = [("train", arguments) for arguments in (absent, none, finished)]
    loaded = run_python(
        "import contextlib, io, sys\n"
        "from ttrl import cli\n"
        f"for command, arguments in {[*commands.items(), *refused]!r}:\n"
        "    sys.argv = ['ttrl', command, *arguments]\n"
        "    said = io.StringIO()\n"
        "    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):\n"
        "        try:\n"
        "            cli.main()\n"
        "        except SystemExit as end:\n"
        "            code = end.code or 0\n"
        "    heavy = sorted({'torch', 'transformers', 'datasets', 'sympy'} & set(sys.modules))\n"
        "    print(command, code, heavy)"
    )
    done = [f"{command} 0 []" for command in commands if command != "train"]
    assert loaded.splitlines() == [*done, *["train 2 []"] * 4]


def test_the_kernels_load_without_ttrl_and_transformers() -> None:
    loaded = run_python(
        "import sys\n"
        "import ttrl_kernels\n"
        "print(sorted({'ttrl', 'transformers'} & set(sys.modules)))"
    )
    assert loaded == "[]"


def test_the_scan_itself_sees_what_it_should() -> None:
    tree = ast.parse(
        "from typing import TYPE_CHECKING\n"
        "import a.b, c\n"
        "if TYPE_CHECKING:\n    import d\n"
        "try:\n    from e import f\nexcept ImportError: pass\n"
        "class K:\n    import g\n    def h(self):\n        import i\n"
    )
    now = {"typing.TYPE_CHECKING", "a.b", "c", "e.f", "g"}
    assert set(imported_at_once(tree)) == now
    assert set(imported(tree)) == {*now, "d", "i"}


def test_settings_are_checked_without_torch() -> None:
    """`ttrl train --dry-run` and a mistake in the settings are answered at once."""
    script = (
        "import sys, ttrl.rewards.scorer, ttrl.settings.recipe\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
