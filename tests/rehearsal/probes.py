"""Noting which statements of CUDA's are reached: each has a call put before it as it is imported.

A tracer of Python's would see neither the threads in which autograd runs backward passes, nor be
quick. Lines keep their numbers, so that tracebacks and `inspect` know nothing of it.
"""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from cuda_lines import ROOT, Unit, find

reached: set[str] = set()
"""The keys of statements that were."""

NAME = "_rehearsed_"


class Loader(importlib.machinery.SourceFileLoader):
    """Compiles a file with a probe before each of some statements."""

    def __init__(self, name: str, path: str, units: Sequence[Unit]) -> None:
        super().__init__(name, path)
        self.keys: dict[int, list[str]] = {}
        for unit in units:
            self.keys.setdefault(unit.line, []).append(unit.key)

    def get_code(self, fullname: str) -> CodeType:
        """Never from a cache."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path))
        for node in list(ast.walk(tree)):
            for field in ("body", "orelse", "finalbody"):
                if isinstance(block := getattr(node, field, None), list):
                    setattr(node, field, self._probed(block))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    def _probed(self, block: list[Any]) -> list[Any]:
        found: list[Any] = []
        for statement in block:
            for key in self.keys.get(statement.lineno, ()):
                call = ast.Call(ast.Name(NAME, ast.Load()), [ast.Constant(key)], [])
                found.append(ast.copy_location(ast.Expr(call), statement))
            found.append(statement)
        return found


class Finder:
    """Finds our own modules, for `Loader`."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units: dict[str, list[Unit]] = {}
        for unit in units:
            self.units.setdefault(unit.file, []).append(unit)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Part of Python's import protocol."""
        if name.partition(".")[0] not in ("ttrl", "ttrl_kernels"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            origin = Path(spec.origin).resolve()
            file = origin.relative_to(ROOT).as_posix() if origin.is_relative_to(ROOT) else ""
            if file in self.units:
                spec.loader = Loader(name, spec.origin, self.units[file])
        return spec


def put_in() -> None:
    """Before anything of ours is imported."""
    assert "ttrl" not in sys.modules and "ttrl_kernels" not in sys.modules
    setattr(builtins, NAME, reached.add)
    sys.meta_path.insert(0, Finder(find()))  # type: ignore[arg-type]
