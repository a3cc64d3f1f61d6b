"""Which statements of ours only a GPU runs, or run otherwise on one; found without running any.

A statement is CUDA's if

- it lies where a question about CUDA was answered with yes: in the branch of ``if x.is_cuda``, or
  behind ``if not torch.cuda.is_available(): return``;
- it asks such a question itself, or calls something of `torch.cuda`;
- it is in a function that only statements of CUDA call, or in a file of `FILES`.

Of a compound statement its first line counts; what is inside counts by itself. What a Triton kernel
consists of is not counted: that is no Python, and has tests of its own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

FOLDERS = ("ttrl", "kernels/ttrl_kernels")

FILES = ("kernels/ttrl_kernels/rows/triton.py",)
"""Files that are imported for a GPU only."""

EXCEPT = "ttrl/plan/"
"""Files that compute about GPUs, on any machine."""

YES, NO = {"on_gpu"}, {"on_cpu"}
"""Names of variables that say whether tensors are on a GPU."""

SETTINGS = {"offload_during_rollout"}
"""Settings that `ttrl.run.preflight.refuse_impossible` refuses without a GPU."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Unit:
    """A statement of CUDA's."""

    file: str
    """Relative to the repository."""
    line: int
    key: str
    """The same after every edit elsewhere: ``FILE: FUNCTION: first line``."""
    certain: bool
    """It does not run at all without a GPU."""


def find(root: Path = ROOT) -> list[Unit]:
    """All of them, in the order of files and lines."""
    trees = {
        path.relative_to(root).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*.py"))
        if not path.relative_to(root).as_posix().startswith(EXCEPT)
    }
    finder = Finder(trees)
    units = []
    for file, statement, where in sorted(
        finder.found.values(), key=lambda item: (item[0], item[1].lineno)
    ):
        text = ast.unparse(statement).splitlines()[0]
        key, certain = f"{file}: {where}: {text}", id(statement) in finder.certain
        units.append(Unit(file, statement.lineno, key, certain))
    return units


class Finder:
    """Statements of CUDA's in all files together, since they call each other."""

    def __init__(self, trees: dict[str, ast.Module]) -> None:
        self.trees = trees
        self.found: dict[int, tuple[str, ast.stmt, str]] = {}
        self.certain: set[int] = set()
        """Those of them that do not run at all without a GPU."""
        self.questions: dict[str, bool] = {}
        """Functions that say whether something is on a GPU, and what they answer then."""
        self.ours: set[str] = set()
        """Functions that only statements of CUDA's call."""
        for tree in trees.values():
            self._find_questions(tree)
        self.asking = {
            id(node)
            for tree in trees.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.stmt) and self._asks_itself(node)
        }
        self._find_calls()
        known = -1
        while known < len(self.certain) + len(self.ours):
            known = len(self.certain) + len(self.ours)
            for file, tree in trees.items():
                self._walk(file, tree.body, "", file in FILES)
            self._find_ours()

    def _find_questions(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                last = node.body[-1]
                if isinstance(last, ast.Return) and last.value and len(node.body) <= 2:
                    yes, no = self.asks(last.value)
                    if (yes or no) and node.returns and ast.unparse(node.returns) == "bool":
                        self.questions[node.name] = yes

    def asks(self, test: ast.expr) -> tuple[bool, bool]:
        """Whether a GPU is sure if the test is true, and if it is false."""
        match test:
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                yes, no = self.asks(inner)
                return no, yes
            case ast.BoolOp(op=op, values=values):
                every = [self.asks(value) for value in values]
                yes, no = [a for a, _ in every], [b for _, b in every]
                return (any(yes), all(no)) if isinstance(op, ast.And) else (all(yes), any(no))
            case ast.Name(id=name) if name in YES | NO:
                return name in YES, name in NO
            case ast.Attribute(attr=name) if name in SETTINGS | {"is_cuda"}:
                return True, False
            case ast.Call(func=ast.Attribute() as function) if (
                ast.unparse(function) == "torch.cuda.is_available"
            ):
                return True, False
            case ast.Call(func=ast.Name(id=name)) if name in self.questions:
                return self.questions[name], not self.questions[name]
            case ast.Compare(ops=[op], comparators=[ast.Constant(value=("cuda" | "cpu") as kind)]):
                if not ast.unparse(test.left).endswith("type"):
                    return False, False
                yes = isinstance(op, ast.Eq) == (kind == "cuda")
                return yes, not yes
        return False, False

    def _walk(self, file: str, body: list[ast.stmt], where: str, inside: bool) -> None:
        """Note the statements of a block; ``inside``: a GPU is sure where it begins."""
        for statement in body:
            if isinstance(statement, Function | ast.ClassDef):
                if not any("triton.jit" in ast.unparse(d) for d in statement.decorator_list):
                    name = f"{where}.{statement.name}".lstrip(".")
                    called = isinstance(statement, Function) and statement.name in self.ours
                    self._walk(file, statement.body, name, inside or called)
                continue
            words = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            imports = not where and isinstance(statement, ast.Import | ast.ImportFrom)
            if (inside or id(statement) in self.asking) and not words and not imports:
                self.found[id(statement)] = (file, statement, where or "(module)")
            if inside:
                self.certain.add(id(statement))
            if isinstance(statement, ast.If):
                yes, no = self.asks(statement.test)
                self._walk(file, statement.body, where, inside or yes)
                self._walk(file, statement.orelse, where, inside or no)
                inside = inside or (no and _leaves(statement.body))
                inside = inside or (yes and bool(statement.orelse) and _leaves(statement.orelse))
                continue
            for block in _blocks(statement):
                self._walk(file, block, where, inside)

    def _asks_itself(self, statement: ast.stmt) -> bool:
        for node in _own(statement):
            if isinstance(node, ast.expr) and any(self.asks(node)):
                return True
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.cuda."):
                return True
        return False

    def _find_calls(self) -> None:
        """Where each name of a function is used, as the statements that use it."""
        self.uses: dict[str, list[int]] = {}
        self.defined: dict[str, int] = {}
        for tree in self.trees.values():
            for node in ast.walk(tree):
                if isinstance(node, Function):
                    self.defined[node.name] = self.defined.get(node.name, 0) + 1
                if not isinstance(node, ast.stmt) or isinstance(node, Function | ast.ClassDef):
                    continue
                for part in _own(node):
                    name = getattr(part, "id", None) or getattr(part, "attr", None)
                    if isinstance(name, str):
                        self.uses.setdefault(name, []).append(id(node))

    def _find_ours(self) -> None:
        for name, times in self.defined.items():
            uses = self.uses.get(name, [])
            if times == 1 and uses and all(use in self.certain for use in uses):
                self.ours.add(name)


def _leaves(body: list[ast.stmt]) -> bool:
    """Whether a block never goes on behind itself."""
    return isinstance(body[-1], ast.Return | ast.Raise | ast.Continue)


def _blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The blocks of a compound statement that is no ``if``."""
    for name in ("body", "orelse", "finalbody"):
        if block := getattr(statement, name, None):
            yield block
    for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        yield part.body


def _own(statement: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a statement without those of the statements inside it."""
    for child in ast.iter_child_nodes(statement):
        if not isinstance(child, ast.stmt):
            yield child
            yield from _own(child)
