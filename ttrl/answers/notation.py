r"""From the LaTeX of an answer to LaTeX that can be read in one way only.

This is the gate between model output and computer algebra. What passes consists of known
commands, and every number and variable in it has become ``\variable{a0}``, ``\variable{a1}``, ...:
the parser behind the gate sees neither digits to compute with nor names to look up.

LaTeX in the wild is ambiguous, and a wrong reading would merge answers that differ. So what can
be read in two ways does not pass: ``1/2x``, ``2\frac{1}{2}`` within an expression, ``x^12``,
``\sin x(x+1)``, ``f(2)``, ``AB``. Neither do words, units, numbers like ``007``, or anything else
that is not algebra.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ttrl.answers.brackets import content

LONGEST = 300
"""Longer expressions (in characters) do not pass: nobody's answer, and slow to parse."""
DEEPEST = 30
"""Expressions whose brackets are nested deeper do not pass."""
BARE = r"\variable{a0}"
"""An expression that is one number or variable."""


class Expression(NamedTuple):
    """An expression that a parser can read in one way only."""

    latex: str
    atoms: tuple[str, ...]
    r"""What ``\variable{a0}`` and so on stand for: numbers, and names of variables."""


def translate(text: str) -> Expression | None:
    """Return an unambiguous spelling of an expression in canonical form; None if there is none."""
    if len(text) > LONGEST or _DERIVATIVE.search(text):
        return None
    if _WORD.search(_COMMAND.sub(" ", text)) or _NAMES.search(text) or _CALL.search(text):
        return None
    try:
        return _Translator(text).expression()
    except _DoesNotPass:
        return None


_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{3}")
_DERIVATIVE = re.compile(r"\\frac.*\{d ?[A-Za-z\\]")  # not y/x
_NAMES = re.compile(
    r"(?<![A-Za-z\\])(?:[A-Z](?: |\\cdot ?)?[A-Z]"  # a segment, or matrices: their order matters
    r"|[fgFGHP]'* ?\()"  # a function's value, no product
)
_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi "
    "pi rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi "
    "Psi Omega"
).replace(" ", "|")
_CALL = re.compile(  # no product either: `y(0)`, `\Gamma(1)`, `\phi(n)`
    rf"(?:(?<![A-Za-z\\])[A-Za-z]|\\(?:{_GREEK})(?![A-Za-z]))"
    r"(?:_(?:[0-9A-Za-z]|\{[0-9A-Za-z]+\}))?(?:\^(?:[0-9A-Za-z]|\{-?[0-9]+\}))? ?"
    r"\([-+ ]*(?:(?:[0-9./ {}]|\\frac|\\pi(?![A-Za-z]))+"
    rf"|[A-Za-z]|\\(?:{_GREEK})) ?\)"
)
_TOKEN = re.compile(
    rf"""\ *(?:
      (?P<number>  [0-9]+(?:\.[0-9]+)? | \.[0-9]+ )
    | (?P<name>    (?: [A-Za-z] | \\(?:{_GREEK})(?![A-Za-z]) )
                   (?: _(?:[0-9A-Za-z]|\{{[0-9A-Za-z]+\}}) )? )
    | (?P<command> \\[A-Za-z]+ )
    | (?P<sign>    [-+*/^!()|{{}}\[\]_] )
    )\ *""",
    re.VERBOSE,
)
_INVERSE = {
    name: rf"\ar{'' if name.endswith('h') else 'c'}{name}"
    for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")
}
_FUNCTIONS = {
    *(rf"\{name}" for name in (*_INVERSE, "ln", "log", "exp")),
    *(r"\arcsin", r"\arccos", r"\arctan"),
}
_CLOSING = {"(": ")", "{": "}", "|": "|", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_FRAME = {
    "|": r"\lvert {}\rvert ",
    r"\lfloor": r"\lfloor {}\rfloor ",
    r"\lceil": r"\lceil {}\rceil ",
}
_END = ("end", "")


class _DoesNotPass(Exception):
    pass


def _group(latex: str) -> str:
    """Put an operand in braces, which the parser reads ten times faster than parentheses."""
    single = re.fullmatch(r"\\variable\{a[0-9]+\}", latex) or content(latex, "{", "}")
    return latex if single else f"{{{latex}}}"


class _Translator:
    """Reads tokens from left to right, one method for each thing that can stand there."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []  # (kind, text), last one first
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise _DoesNotPass
            kind = match.lastgroup or ""
            self.tokens.append((kind, match[kind]))
            position = match.end()
        self.tokens.reverse()
        self.atoms: dict[str, str] = {}
        self.depth = 0
        self.functions = 0  # whose argument this is part of

    def expression(self) -> Expression:
        latex = self.sequence("")
        # A group that is the whole text would be read as a set.
        return Expression(content(latex, "{", "}") or latex, tuple(self.atoms))

    def next(self) -> tuple[str, str]:
        return self.tokens[-1] if self.tokens else _END

    def take(self, expected: str | None = None) -> str:
        """Take the next token's text, which must be the expected one."""
        text = self.next()[1]
        if not self.tokens or expected not in (None, text):
            raise _DoesNotPass
        self.tokens.pop()
        return text

    def sequence(self, closing: str) -> str:
        """Read factors and the operators between them, up to a closing bracket, which stays."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise _DoesNotPass
        latex = operator = ""
        complete = False  # whether the last thing read was a factor
        signs = 0
        while not (complete and self.next()[1] == closing):
            kind, text = self.next()
            if text in ("+", "-", "*", "/", r"\cdot", r"\div"):
                signs = 0 if complete else signs + 1
                if signs > 1 or (signs and text not in ("+", "-")):
                    raise _DoesNotPass  # but `2+-3` does
                operator = self.take()
                latex += {r"\cdot": r"\cdot ", "*": r"\cdot ", r"\div": "/"}.get(text, text)
                complete = False
                continue
            if complete:
                # Juxtaposed: a product, unless a division makes its extent unclear.
                if kind == "number" or operator in ("/", r"\div"):
                    raise _DoesNotPass
                latex += r"\cdot "
            latex += self.factor()
            complete, signs = True, 0
        self.depth -= 1
        return latex

    def factor(self) -> str:
        """Read a number, name, bracket, fraction, root or function, with powers and factorials."""
        latex = self.primary()
        if self.next()[1] == r"\degree":
            if not self.functions:
                raise _DoesNotPass  # a unit, but for a sine
            self.take()
            pi, half_turn = self.atom(r"\pi"), self.atom("180")
            latex = rf"{{{latex}\cdot \frac{{{pi}}}{{{half_turn}}}}}"
        powers = 0
        while self.next()[1] in ("^", "!"):
            latex = _group(latex) + ("!" if self.take() == "!" else f"^{self.argument()}")
            powers += 1
        if powers > 1:
            raise _DoesNotPass  # `x^2^3` is no LaTeX, `n!!` not (n!)!, and `2^n!` read either way
        return latex

    def primary(self) -> str:
        kind, text = self.next()
        if kind in ("number", "name"):
            self.take()
            if kind == "number":
                self.no_mixed_number(text)
            return self.atom(text)
        if text in _CLOSING:
            opening = self.take()
            inside = self.sequence(_CLOSING[opening])
            self.take(_CLOSING[opening])
            return _FRAME[opening].format(inside) if opening in _FRAME else _group(inside)
        if text in (r"\frac", r"\binom"):
            self.take()
            return f"{text}{self.argument(short=True)}{self.argument(short=True)}"
        if text == r"\sqrt":
            return self.root()
        if text in _FUNCTIONS:
            return self.function()
        raise _DoesNotPass

    def no_mixed_number(self, text: str) -> None:
        r"""Refuse `2\frac{1}{2}`, `1e5` and `007`; `x_1` and `2_5` are no powers either."""
        if re.match("0[0-9]", text):
            raise _DoesNotPass
        following, after = self.next(), self.tokens[-2] if len(self.tokens) > 1 else _END
        mixed = following[1] == r"\frac" and re.match(
            r"(?:[0-9]|\{[0-9]+\}){2}", "".join(text for _, text in self.tokens[-2::-1])
        )
        scientific = following[1] in ("e", "E") and after[0] == "number"
        if mixed or scientific:
            raise _DoesNotPass

    def root(self) -> str:
        self.take(r"\sqrt")
        index = ""
        if self.next()[1] == "[":
            self.take()
            index = f"[{self.sequence(']')}]"
            self.take("]")
        return rf"\sqrt{index}{self.argument()}"

    def function(self) -> str:
        """Read a function and its argument, which gets brackets if it has none."""
        name, power = self.take(), ""
        if name == r"\log" and self.next()[1] == "_":
            self.take()
            name += f"_{self.argument(short=True)}"
        if self.next()[1] == "^":
            self.take()
            power = f"^{self.argument()}"
        if power.startswith("^{-") and self.atoms_of(power) == ["1"]:
            if name[1:] not in _INVERSE:
                raise _DoesNotPass
            name, power = _INVERSE[name[1:]], ""
        self.functions += 1
        if self.next()[1] == "(":
            argument = self.primary()
            self.functions -= 1
            if self.next()[1] == r"\degree":
                raise _DoesNotPass
            return f"{{{name}{power}{{{argument}}}}}"
        argument = self.factor()
        while self.next()[0] == "name" or self.next()[1] in (r"\frac", r"\sqrt"):
            argument += rf"\cdot {self.factor()}"
        self.functions -= 1
        if self.next()[1] in ("(", "{", "|", "/", "^", "!"):
            raise _DoesNotPass  # `\sin x(y)`, `\sin x/2`: where does the argument end?
        return f"{{{name}{power}{{{argument}}}}}"

    def argument(self, *, short: bool = False) -> str:
        r"""Read a group in braces, or one digit or name: TeX takes no more.

        Args:
            short: in ``\frac12`` two digits are two arguments; elsewhere the author of ``x^12``
                may have meant something else than TeX does.
        """
        kind, text = self.next()
        if text == "{":
            self.take()
            inside = self.sequence("}")
            self.take("}")
            return f"{{{inside}}}"
        if kind == "number" and text.isdigit() and (short or len(text) == 1):
            self.take()
            if len(text) > 1:
                self.tokens.append(("number", text[1:]))
            return f"{{{self.atom(text[0])}}}"
        if kind == "name":
            return f"{{{self.atom(self.take())}}}"
        raise _DoesNotPass

    def atom(self, text: str) -> str:
        text = text.replace("{", "").replace("}", "")
        name = self.atoms.setdefault(text, f"a{len(self.atoms)}")
        return rf"\variable{{{name}}}"

    def atoms_of(self, latex: str) -> list[str]:
        """Return the atoms that a piece of the result mentions."""
        names = set(re.findall(r"a[0-9]+", latex))
        return [atom for atom, name in self.atoms.items() if name in names]
