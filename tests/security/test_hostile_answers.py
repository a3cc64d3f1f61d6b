"""Model output is hostile: nothing in it runs, and no answer costs more than its length.

What this does not show: that a dependency evaluates nothing. None is given an answer to read.
"""

from __future__ import annotations

import ast
import sys
import time
from pathlib import Path

import pytest

import ttrl
from ttrl.answers import canonical, equivalent, extract_answer
from ttrl.answers.extract import MOST
from ttrl.evaluation.metrics import maj_at_k
from ttrl.rewards import majority_vote

REPOSITORY = Path(ttrl.__file__).parents[1]
MEGABYTE = 1_000_000
SECONDS = 20.0
"""Far above what an answer takes, far below what a power tower or exponential search would."""


def grade(text: str) -> None:
    """All that a run does with a completion's text."""
    answers = [extract_answer(text), text, "7", None]
    assert sum(majority_vote(answers).counts) >= 1
    assert not equivalent(text, "another")
    assert maj_at_k(answers, "another", 2) == 0


CODE = [
    "__import__('pathlib').Path({canary!r}).touch()",
    "open({canary!r}, 'w')",
    "exec(\"open({canary!r}, 'w')\")",
    "eval(\"open({canary!r}, 'w')\")",
    "(lambda: open({canary!r}, 'w'))()",
    "[open({canary!r}, 'w') for x in (1,)]",
    "f\"{{open({canary!r}, 'w')}}\"",
    "().__class__.__base__.__subclasses__()[0].__init__.__globals__; open({canary!r}, 'w')",
    "x = open({canary!r}, 'w')",
    "$(touch {canary})",
    "`touch {canary}`",
    "; touch {canary} #",
    '\\input{{|"touch {canary}"}}',
    "\\immediate\\write18{{touch {canary}}}",
    "!!python/object/apply:os.system ['touch {canary}']",
    "cos\nsystem\n(S'touch {canary}'\ntR.",
    "sympify(\"open({canary!r}, 'w')\")",
]


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("frame", ["{}", "\\boxed{{{}}}", "\\boxed{{\\frac{{{}}}{{2}}}}", "x={}"])
def test_nothing_runs(code: str, frame: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    grade(frame.format(code.format(canary=str(canary))))
    assert not canary.exists()


HUGE = {
    "open braces": "{" * MEGABYTE,
    "closed braces": "}" * MEGABYTE,
    "braces in a box": "\\boxed{" + "{" * (MEGABYTE // 2) + "}" * (MEGABYTE // 2) + "}",
    "open boxes": "\\boxed{" * (MEGABYTE // 7),
    "nested boxes": "\\boxed{" * 10**4 + "5" + "}" * 10**4,
    "many boxes": "\\boxed{5}" * (MEGABYTE // 9),
    "box and spaces": ("\\boxed" + " " * 1000) * 1000,
    "backslashes": "\\boxed{" + "\\" * MEGABYTE + "}",
    "digits": "\\boxed{" + "9" * MEGABYTE + "}",
    "decimals": "\\boxed{0." + "9" * MEGABYTE + "}",
    "commas": "\\boxed{1" + ",000" * (MEGABYTE // 4) + "}",
    "NULs": "\\boxed{" + "\0" * MEGABYTE + "}",
    "text": "\\boxed{" + "\\text{" * 10**4 + "5" + "}" * 10**4 + "}",
    "fractions": "\\boxed{" + "\\frac{" * 10**4 + "1" + "}{2}" * 10**4 + "}",
    "parentheses": "\\boxed{" + "(" * 10**4 + "1" + ")" * 10**4 + "}",
}
# Just short enough to be rewritten: where a regular expression would blow up.
BOMBS = {
    "nested groups": "{" * 490 + "25" + "}" * 490,
    "nested text": "\\text{" * 140 + "25" + "}" * 140,
    "unclosed groups": "{" * 999,
    "digits": "9" * 999,
    "digits and a letter": "9" * 998 + "x",
    "decimals": "." + "9" * 998,
    "groups of digits": "1" + ",000" * 249,
    "groups of digits and a letter": "1" + ",000" * 249 + "x",
    "commas": "," * 999,
    "spaces": "1 " * 499,
    "spacing": "\\!" * 499,
    "thousands": "1,\\!" * 249,
    "units": "5" + "\\text{cm}" * 100,
    "almost a unit": "5\\text{square " + "cm per " * 140 + "}",
    "periods": "." * 999,
    "assignments": "x=" * 499,
    "fractions": "\\frac1" * 166,
    "parentheses": "(" * 499 + ")" * 499,
    "numbers of thousands": "1,000, " * 142,
    "thousands in brackets": "(1,000" * 120 + ")" * 120,
    "tuples in tuples": "(" * 300 + "1,200, 3" + ")" * 300,
    "decimal commas": "1{,}" * 249,
    "thin spaces": "1\u2009000" * 199,
    "vulgar fractions": "½" * 999,
    "powers": "2^(" * 200 + "1" + ")" * 200,
    "plain roots": "sqrt(" * 160 + "2" + ")" * 160,
    "stars": "*" * 999,
    "bold": "**a" * 300,
    "words": "a b-c " * 160,
    "words and numbers": "5 apples " * 110,
    "a long unit": "5 " + "cm/" * 300,
    "bare units": "5" + " cm" * 300,
    "texts": "\\text{a" * 140,
    "equations": "AB=" * 300 + "5",
    "approximations": "\\approx5" * 120,
    "primes": "x" + "'" * 900 + "=5",
    "names": "(" + "x," * 400 + "x)=5",
    "inequalities": "x<1 or " * 140,
    "or": " or " * 249,
    "periods of digits": "0." + "1" * 400 + "\\overline{" + "2" * 400 + "}",
    "exponents": "1e99" * 200,
    "degrees": "\\sin30^\\circ" * 70,
    "quotes": '"' * 999,
    "operators": "!=" * 499,
    "ligatures": "\ufdfa" * 999,
    "raised": "²₂" * 499,
    "semicolons": ";" * 999,
    "matrices": "(\\begin{pmatrix}" * 50 + "\\end{pmatrix})" * 50,
    "combining": "a" + "\u0301" * 998,
    "surrogates": "\ud800" * 999,
}
TOWERS = [
    "9^{9^{9^9}}",
    "9^9^9^9",
    "((9^9)^{9999})^{9999}",
    "(10^9)!",
    "1e999999999",
    "\\frac10",
    "2^{2^{31}}+1",
    "\\binom{10^9}{10^8}",
    "\\sum_{n=1}^{10^{12}}n",
]


@pytest.mark.parametrize("text", [*HUGE.values(), *BOMBS.values()], ids=[*HUGE, *BOMBS])
def test_bounded_time(text: str) -> None:
    started = time.monotonic()
    grade(text)
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize(
    ("content", "rewritings"),
    [("€" * 990 + "5", 2), ("{" * 490 + "5" + "}" * 490, 3), ("5" + ",;" * 490, 3)],
    ids=["currencies", "groups", "stops"],
)
def test_boxes_are_rewritten_once(
    content: str, rewritings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work is counted: rewritings of one content, at most once for each different one."""
    cleaned = []
    rules = sys.modules["ttrl.answers.canonical"]
    clean = rules.clean
    monkeypatch.setattr(rules, "clean", lambda text: cleaned.append(text) or clean(text))
    assert extract_answer(f"\\boxed{{{content}}}," * 100) == content
    assert len(cleaned) <= 2 * rewritings  # of the content, and of the answer
    different = "".join(f"\\boxed{{{content}{i}}}," for i in range(100))
    cleaned.clear()
    assert extract_answer(different).count(", ") == MOST - 1
    assert len(cleaned) <= MOST * (rewritings + 3)


@pytest.mark.parametrize("tower", TOWERS)
def test_nothing_is_computed(tower: str) -> None:
    grade(f"\\boxed{{{tower}}}")
    assert canonical(tower) == tower


def test_plain_towers_are_spelled_in_latex_and_not_computed() -> None:
    for plain in ("9**9**9**9", "((9**9)**9999)**9999", "1e99**1e99"):
        grade(f"\\boxed{{{plain}}}")
        assert len(canonical(plain)) < 2 * len(plain)


# ---------------------------------------------------------------------------------------------
# Our own code cannot run what it reads, because it does not contain the calls for it

BANNED_NAMES = {"eval", "exec", "sympify", "parse_expr"}
BANNED_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve"}


def banned(source: str) -> list[str]:
    """Uses of eval, exec, sympy's parsers, pickle and torch.load (but not of `model.eval`)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) if name in BANNED_NAMES | BANNED_MODULES:
                found.append(name)
            case ast.Attribute(attr="sympify" | "parse_expr" as name):
                found.append(name)
            case ast.Attribute(value=ast.Name(id="builtins"), attr="eval" | "exec" as name):
                found.append(name)
            case ast.Attribute(value=ast.Name(id="torch"), attr="load"):
                found.append("torch.load")
            case ast.Import(names=names):
                found += [a.name for a in names if a.name.split(".")[0] in BANNED_MODULES]
            case ast.ImportFrom(module=str(module), names=names):
                if module.split(".")[0] in BANNED_MODULES:
                    found.append(module)
                imported = {a.name for a in names}
                found += sorted(imported & BANNED_NAMES)
                if module == "torch" and "load" in imported:
                    found.append("torch.load")
    return found


def sources() -> list[Path]:
    return [p for folder in ("ttrl", "kernels") for p in (REPOSITORY / folder).rglob("*.py")]


def test_no_call_that_runs_what_it_reads() -> None:
    assert len(sources()) > 10
    calls = {p.name: banned(p.read_text(encoding="utf-8")) for p in sources()}
    # The one process that runs checks which a verifier wrote: the kernel has locked it first, and
    # nobody starts it who has not asked for it (tests/unit/test_generative_verifier.py).
    locked = {"locked.py": ["exec", "exec"]}
    assert {name: found for name, found in calls.items() if found} == locked


@pytest.mark.parametrize(
    "source",
    [
        "eval(answer)",
        "f = exec",
        "import builtins; builtins.eval(answer)",
        "sympy.sympify(answer)",
        "from sympy.parsing.sympy_parser import parse_expr",
        "import pickle",
        "from pickle import loads",
        "import pickle as p",
        "torch.load(path)",
        "from torch import load",
    ],
)
def test_the_ban_sees(source: str) -> None:
    assert banned(source)


def test_the_ban_spares_what_is_harmless() -> None:
    assert banned("model.eval(); evaluate(); safetensors.torch.load_file(path)") == []
