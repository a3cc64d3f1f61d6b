r"""Computer algebra, in a process of its own that may be killed at any time.

Started by `ttrl.answers.workers` as a script, with nothing of ttrl on its path. Reads one question
per line of standard input and writes one line for each, as JSON:

    {"sides": [["\\sqrt{\\variable{a0}}", ["2"]]], "relation": ""}
    {"key": "~1.414213562373095048801688..."}

A key says what an expression is worth: equal keys, equal values. It is null if this program cannot
tell. Expressions are parsed by latex2sympy2_extended, the parser of Math-Verify, with every number
and variable replaced by a nameless symbol, so that sympy has nothing to compute or look up; what
comes out of the parser is then evaluated by the functions below, which know no others:

- in exact fractions as long as possible, so that 10^40 and 10^40 + 1 stay apart;
- else with 160 digits, where whatever would lose most of them (adding 10^50 and pi) has no key;
- an expression with variables, at fixed points: two different ones that agree at all of them would
  be a coincidence (Schwartz and Zippel), and no simplification is needed. Their signs are chosen
  so that |xy| is not taken for xy.

What protects the rest from this process: it inherits no secrets, can write no file and start no
process, its memory and processor time are limited, and it ends with its input.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import mpmath as mp
import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

Value = Any  # Fraction, mpmath.mpf or mpmath.mpc

mp.mp.dps = 160
KEY_DIGITS = 100
LONGEST_FACTOR = 300
"""Bits of the longest fraction that a key of `KEY_DIGITS` digits tells from its neighbours."""
LOST = mp.mpf(10) ** -40
"""A value this small beside its terms has too few digits left, unless it is below `ZERO`."""
ZERO = mp.mpf(10) ** -120
"""A value this small beside its terms is zero, but for rounding."""
SIMPLE = 10**30
"""Fractions whose numerator times denominator is smaller are recognised from their digits."""
LARGEST = 12_000
"""Bits of the largest fraction that is computed exactly."""
POINTS = 9


class NoKey(Exception):
    """This program cannot say what an expression is worth."""


# ---------------------------------------------------------------------------------------------
# Arithmetic


def _real(x: Value) -> Value:
    """Convert a value for mpmath, which does not know fractions."""
    if not isinstance(x, Fraction):
        return x
    if x.numerator.bit_length() + x.denominator.bit_length() > LONGEST_FACTOR:
        raise NoKey("more digits than are compared")
    return mp.mpf(x.numerator) / x.denominator


def _checked(x: Value, scale: Value) -> Value:
    """Check a result whose terms were as large as ``scale`` for lost digits."""
    size = abs(x)
    if size <= ZERO * scale:
        return Fraction(0)
    if size < LOST * scale:
        raise NoKey("most digits cancelled")
    return x


def _exact(x: Fraction) -> Fraction:
    if x.numerator.bit_length() + x.denominator.bit_length() > LARGEST:
        raise NoKey("too large")
    return x


def add(*terms: Value) -> Value:
    """Add up terms; no key if some vanish beside others."""
    exact = _exact(sum((t for t in terms if isinstance(t, Fraction)), Fraction(0)))
    others = [t for t in terms if not isinstance(t, Fraction)]
    if not others:
        return exact
    others += [_real(exact)] if exact else []
    sizes = [abs(t) for t in others]
    if max(sizes) > mp.mpf(10) ** 15 * min(sizes):
        raise NoKey("terms of too different size")
    return _checked(mp.fsum(others), max(sizes))


def multiply(*factors: Value) -> Value:
    """Multiply factors, the exact ones first."""
    product: Value = Fraction(1)
    for factor in sorted(factors, key=lambda f: not isinstance(f, Fraction)):
        if product == 0:
            return Fraction(0)
        if isinstance(factor, Fraction):
            product = _exact(product * factor)
        else:
            product = _real(product) * factor
    return product


def power(base: Value, exponent: Value) -> Value:
    """Raise to a power; a negative base with an odd denominator above has its real power."""
    if exponent == 0 or base == 0:
        if base == 0 and (not isinstance(exponent, Fraction) or exponent <= 0):
            raise NoKey("a power of zero")
        return Fraction(base != 0)
    if isinstance(exponent, Fraction):
        if isinstance(base, Fraction):
            root = _root(base, exponent.denominator)
            bits = (base.numerator.bit_length() + base.denominator.bit_length()) * abs(exponent)
            if root is not None and bits <= LARGEST:
                return _exact(root**exponent.numerator)
        if exponent.denominator % 2 == 1 and not isinstance(base, mp.mpc) and base < 0:
            return (-1) ** exponent.numerator * power(-base, exponent)
    base, exponent = _real(base), _real(exponent)
    if not 1e-12 < abs(exponent) < 1e9 or abs(exponent * mp.log(base)) > 1e9:
        raise NoKey("too large or too close to 1")
    return mp.power(base, exponent)


def _root(x: Fraction, degree: int) -> Fraction | None:
    """Return the exact root, if it is a fraction."""
    if degree == 1:
        return x
    if degree > 64 or x < 0:
        return None
    roots = []
    for n in (x.numerator, x.denominator):
        guess = round(mp.root(n, degree)) if n.bit_length() < 300 * degree else 0
        if guess**degree != n:
            return None
        roots.append(int(guess))
    return Fraction(*roots)


def factorial(x: Value) -> Value:
    """Compute n!, or the gamma function of n + 1."""
    if isinstance(x, Fraction) and x.denominator == 1 and 0 <= x <= 1000:
        return Fraction(math.factorial(int(x)))
    return _guarded(mp.factorial)(x)


def binomial(n: Value, k: Value) -> Value:
    """Compute n over k."""
    whole = all(isinstance(x, Fraction) and x.denominator == 1 and 0 <= x <= 1000 for x in (n, k))
    if whole:
        return Fraction(math.comb(int(n), int(k)))
    return _guarded(mp.binomial)(n, k)


def logarithm(x: Value, base: Value) -> Value:
    """Compute the principal value of a logarithm."""
    return multiply(_guarded(mp.log)(x), power(_guarded(mp.log)(base), Fraction(-1)))


def _rounded(rounding: Callable[[Fraction], int]) -> Callable[[Value], Value]:
    """Make floor or ceil a function of values; of an inexact one only if the result is clear."""

    def apply(x: Value) -> Value:
        if not isinstance(x, Fraction):
            if isinstance(x, mp.mpc) or abs(x - mp.nint(x)) < LOST or abs(x) > SIMPLE:
                raise NoKey("a limit case")
            x = Fraction(mp.nstr(x, 60))
        return Fraction(rounding(x))

    return apply


def _guarded(function: Callable[..., Value], largest: float = 1e12) -> Callable[..., Value]:
    """Keep a function of mpmath from where it loses the digits that tell arguments apart."""

    def apply(*arguments: Value) -> Value:
        if any(x != 0 and not 1e-12 < abs(x) < largest for x in arguments):
            raise NoKey("an argument too large or too small")
        value = _checked(function(*map(_real, arguments)), mp.mpf(1))
        if not mp.isfinite(value) or (function in _PERIODIC and abs(value) > 1e60):
            raise NoKey("a pole")
        return value

    return apply


_PERIODIC = (mp.tan, mp.cot, mp.sec, mp.csc)
_OPERATIONS: dict[Any, Callable[..., Value]] = {
    sympy.Add: add,
    sympy.Mul: multiply,
    sympy.Pow: power,
    sympy.Abs: lambda x: abs(x),
    sympy.factorial: factorial,
    sympy.binomial: binomial,
    sympy.log: logarithm,
    sympy.floor: _rounded(math.floor),
    sympy.ceiling: _rounded(math.ceil),
    sympy.exp: lambda x: power(mp.mpf(mp.e), x),
    sympy.tanh: _guarded(mp.tanh, 20),
    **{
        getattr(sympy, name): _guarded(getattr(mp, name))
        for name in (
            *("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec"),
            *("acsc", "sinh", "cosh", "asinh", "acosh", "atanh"),
        )
    },
}


# ---------------------------------------------------------------------------------------------
# Values and keys


def evaluate(node: Any, atoms: dict[str, Value]) -> Value:
    """Compute the value of a parsed expression."""
    if node.is_Symbol:
        return atoms[node.name]
    if node.is_Rational:
        return Fraction(int(node.p), int(node.q))
    if node is sympy.E:
        return mp.mpf(mp.e)
    if node.func not in _OPERATIONS:
        raise NoKey(str(node.func))
    return _OPERATIONS[node.func](*[evaluate(argument, atoms) for argument in node.args])


_CONSTANTS = {r"\pi": mp.mpf(mp.pi), "e": mp.mpf(mp.e), "i": mp.mpc(0, 1)}


def atom_value(atom: str, point: int) -> Value:
    """Return a number's value, or a variable's at one of the points."""
    if atom in _CONSTANTS:
        return _CONSTANTS[atom]
    if atom[0] in "0123456789.":
        return Fraction(atom)
    seed = hashlib.sha256(f"{atom} {point // 2}".encode()).digest()
    size = Fraction(101 + int.from_bytes(seed[:4]) % 900, (11, 13, 17, 19, 23, 29, 31)[seed[4] % 7])
    # All are positive at the first point and negative at the second, which tells |x + y| from
    # x + y. At the other seven the signs are a number in binary, another one for each letter, so
    # that the product of two variables has both signs, and |a|/a is not |A|/A.
    pattern = ord(atom) if len(atom) == 1 else hashlib.sha256(atom.encode()).digest()[0] % 128
    signs = 0b10 | pattern << 2
    return -size if signs >> point & 1 else size


def spell(x: Value) -> str:
    """Write a value as a fraction, as in a canonical form, or as digits after a tilde."""
    if isinstance(x, Fraction):
        return str(x)
    if isinstance(x, mp.mpc):
        real, imaginary = _checked(x.real, abs(x)), _checked(x.imag, abs(x))
        return spell(real) if imaginary == 0 else f"~{spell(real)} + {spell(imaginary)}i"
    if not mp.isfinite(x):
        raise NoKey("no number")
    if 1 / mp.mpf(SIMPLE) < abs(x) < SIMPLE:
        digits = Fraction(int(mp.nint(x * 10**150)), 10**150)
        simple = digits.limit_denominator(10**15)
        if (
            abs(simple.numerator) * simple.denominator < SIMPLE
            and abs(digits - simple) < abs(simple) / 10**KEY_DIGITS
        ):
            return str(simple)
    return f"~{mp.nstr(x, KEY_DIGITS)}"


def key(sides: Sequence[tuple[str, Sequence[str]]], relation: str) -> str:
    """Return the key of an expression or a relation.

    Raises:
        NoKey: or anything else, if there is none.
    """
    config = ConversionConfig(lowercase_symbols=False)
    trees = [
        latex2sympy(latex, normalization_config=None, conversion_config=config)
        for latex, _ in sides
    ]
    names = {a for _, atoms in sides for a in atoms if a[0] not in "0123456789."}
    constant = not names - set(_CONSTANTS)
    points = [
        [
            evaluate(tree, {f"a{i}": atom_value(atom, point) for i, atom in enumerate(atoms)})
            for tree, (_, atoms) in zip(trees, sides, strict=True)
        ]
        for point in range(1 if constant else POINTS)
    ]
    if relation:
        differences = [add(left, multiply(Fraction(-1), right)) for left, right in points]
        variables = names - set(_CONSTANTS)
        if relation in ("<", r"\leq") and len(variables) == 1:
            at = [atom_value(variable, point) for variable in variables for point in range(POINTS)]
            return _bound(differences, at, relation) or _relation_key(differences, relation)
        return _relation_key(differences, relation)
    values = [spell(value) for (value,) in points]
    return values[0] if len(set(values)) == 1 else "~" + "|".join(values)


def _relation_key(differences: list[Value], relation: str) -> str:
    """Return a relation's key, one for all (positive) multiples of left - right."""
    if len(differences) == 1 or 0 in differences:
        raise NoKey("says nothing about a variable")
    unit = differences[0]
    if relation not in ("=", r"\neq"):
        if any(isinstance(d, mp.mpc) for d in differences):
            raise NoKey("complex numbers have no order")
        unit = abs(unit)
    scaled = [multiply(d, power(unit, Fraction(-1))) for d in differences]
    return f"~{relation} " + "|".join(map(spell, scaled))


def _bound(differences: list[Value], at: list[Fraction], relation: str) -> str | None:
    r"""Return what an inequality bounds its only variable by; None if it is not linear.

    Args:
        differences: left - right, which the relation says is below zero, at each point.
        at: the variable there.
        relation: ``<`` or ``\leq``.

    Returns:
        A sign and the bound, ``<5`` or ``\geq5``.
    """
    rise = add(differences[0], multiply(Fraction(-1), differences[1]))
    slope = multiply(rise, 1 / (at[0] - at[1]))
    if slope == 0 or isinstance(slope, mp.mpc):
        return None
    over = multiply(Fraction(-1), power(slope, Fraction(-1)))
    bounds = {spell(add(x, multiply(d, over))) for x, d in zip(at, differences, strict=True)}
    if len(bounds) > 1:
        return None
    sign = relation if slope > 0 else {"<": ">", r"\leq": r"\geq"}[relation]
    return sign + bounds.pop()


# ---------------------------------------------------------------------------------------------
# The process


def main(memory_mb: int, deadline_s: float) -> None:
    """Answer questions until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # whatever a library prints is no reply
    _warm_up()  # what Python compiles meanwhile is kept, or a start takes three times as long
    sys.dont_write_bytecode = True
    os.dup2(nowhere, 2)
    _limit(memory_mb)
    print("{}", file=replies, flush=True)
    for line in sys.stdin:
        # Should the parent be gone, nobody else would end a question that takes for ever.
        used = sum(os.times()[:2])
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used + deadline_s) + 2, hard))
        print(json.dumps(_reply(line)), file=replies, flush=True)


def _reply(line: str) -> dict[str, str | bool | None]:
    try:
        return {"key": key(**json.loads(line))}
    except MemoryError:
        return {"key": None, "undecided": True}
    except Exception:  # the parser and mpmath raise what they like
        return {"key": None}


def _warm_up() -> None:
    """Parse something of everything: the first time takes a hundred times longer."""
    for latex in (
        r"\frac{\variable{a0}+\variable{a1}^{\variable{a0}}}{\variable{a1}}\cdot {-\variable{a0}}",
        r"\sqrt[\variable{a0}]{\variable{a1}}-{\variable{a1}-\variable{a0}}/\variable{a1}",
        r"{\sin^{\variable{a0}}{{\variable{a1}}}}\cdot {\cos{{\variable{a1}}}}!",
        r"{\log_{\variable{a0}}{{\variable{a1}}}}+{\ln{{\variable{a1}\cdot \variable{a0}}}}",
        r"{\variable{a0}+\variable{a1}}\cdot {\variable{a0}-\variable{a1}^{\variable{a0}}}",
        r"\lvert \variable{a0}\rvert \cdot \sqrt{\variable{a0}}",
    ):
        key([(latex, ["2", "3"])], "")


def _limit(memory_mb: int) -> None:
    for what, limit in (
        (resource.RLIMIT_AS, memory_mb * 2**20),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 16),
    ):
        resource.setrlimit(what, (limit, limit))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
