r"""When two answers are the same: they have the same canonical spelling.

A spelling is rewritten by rules that each keep its meaning, until no rule applies:

- layout goes: ``$``, ``\left``, ``\!``, white space, a trailing period, braces around one digit;
- synonyms go: ``\le`` is ``\leq``, ``\times`` is ``\cdot``, ``\pi`` may be the character;
- wrappers go: ``{5}``, ``\text{east}``, ``(A)``, ``x=5``;
- a number becomes an exact fraction in lowest terms: ``0.50``, ``\frac12``, ``2/4`` are ``1/2``;
- so does a number that stands alone between brackets and commas: ``(0.5, 3)`` is ``(1/2, 3)``;
- sets lose their order, matrices the kind of their brackets (`ttrl.answers.elements`).

Nothing is evaluated, and no power, product or root computed: what an answer costs depends on its
length alone. What spelling leaves open is for `ttrl.answers.symbolic`.

Decisions where mathematics has none, the same for everybody since there is one grader:

- Units that the question asks for may be left out: ``\$5``, ``5\text{ cm}``, ``5^\circ`` and
  ``5\%`` are ``5`` (and ``50\%`` is not ``0.5``). Only known units are dropped: ``5\text{ p.m.}``
  and ``3\text{ million}`` stay apart from ``5`` and ``3``.
- ``1,000`` is a thousand, ``1, 000`` and ``(1,000)`` are not: a comma groups digits only if the
  whole answer is one number, without brackets and spaces.
- ``2\frac{1}{2}`` and ``2 1/2`` are mixed numbers, 5/2; ``2\frac{3}{2}`` could be a product and
  stays text. So does ``1e5``, which could be hexadecimal.
- ``x=5`` and ``x\in[0,1]`` lose the variable, unless the right-hand side has one: ``y=2x`` stays.
"""

from __future__ import annotations

import re

from ttrl.answers.elements import NUMBER, collection, content, elements, matrix, number

LONGEST = 1000
"""Longer answers (in characters) are compared as they are, apart from white space."""


def canonical(answer: str) -> str:
    """The canonical spelling of an answer; "" if the answer has no content.

    Idempotent, because it applies rules until none changes anything. That ends, because no rule
    brings back what another one removes.
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in answer).split())
    if len(text) > LONGEST:
        return text
    while (simpler := _rewrite(text)) != text:
        text = simpler
    return text


def _rewrite(text: str) -> str:
    """The first rule that changes something, applied once."""
    # The order matters for commas: `\text{1,000}` must be unwrapped and read as a number before
    # a later rule takes its comma for a list's.
    for rule in (_clean, _unwrap, number, elements, collection, matrix):
        if (simpler := rule(text)) != text:
            return simpler
    return text


# ---------------------------------------------------------------------------------------------
# Layout

_CHARACTERS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "π": r"\pi ",
        "∞": r"\infty ",
        "\N{MULTIPLICATION SIGN}": r"\cdot ",
        "·": r"\cdot ",
        "≤": r"\leq ",
        "≥": r"\geq ",
        "≠": r"\neq ",
        "±": r"\pm ",
        "\N{UNION}": r"\cup ",
        "√": r"\sqrt ",
    }
)
_SYNONYMS = {
    "<": "lt",
    ">": "gt",
    "|": "vert lvert rvert mid",
    r"\{": "lbrace",
    r"\}": "rbrace",
    r"\leq": "le leqslant leqq",
    r"\geq": "ge geqslant geqq",
    r"\neq": "ne",
    r"\cdot": "times",
    r"\infty": "infin infinity",
    r"\emptyset": "varnothing",
}
_SYNONYM_OF = {word: chosen for chosen, words in _SYNONYMS.items() for word in words.split()}
_SYNONYM = re.compile(rf"\\({'|'.join(_SYNONYM_OF)})(?![A-Za-z])")
_DIGIT_GROUPING = re.compile(r",\\! *|\{,\}|(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))")
_CONJUNCTION = re.compile(r"(?:, ?| )(?:and|or) |,? ?\\text\{ ?,? ?(?:and|or) ?\}")
_COMMAND = re.compile(
    r"""
      (?P<row>      \\\\ )                                  # so that `\\!` is not read as `\!`
    | (?P<text>     \\(?:text(?:bf|it|rm|sf|tt|normal)|math(?:bf|it|rm|sf)|mbox|hbox)(?![A-Za-z]) )
    | (?P<fraction> \\[cdt]frac(?![A-Za-z]) )
    | (?P<layout>   \\[!,;:>\ ] | ~ | \\(?:left|right|quad|qquad|displaystyle)(?![A-Za-z])
                  | \\[bB]igg?[lrm]?(?![A-Za-z])
                  | \\?\$ | \\[()\[\]] | \\\Z )             # the last one was `\ `, trimmed
    """,
    re.VERBOSE,
)
_SPELLING = {"row": r"\\", "text": r"\text", "fraction": r"\frac", "layout": " "}
# A space stays between letters (`\pi r`), between digits (`2 1/2` is not `21/2`), after a comma.
_NEEDLESS_SPACE = re.compile(r" (?!(?<=[A-Za-z] )[A-Za-z]|(?<=[0-9] )[0-9]|(?<=, ))")
_NEEDLESS_BRACES = re.compile(r"(?<!\\)(?<!\\text)\{([0-9])\}|(?<=[\^_])\{([A-Za-z])\}")
_LAST_PERIOD = re.compile(r"(?<!\.)\.$")


def _clean(text: str) -> str:
    r"""Without what TeX prints alike, or what only moves ink: ``\sqrt {2}\,`` is ``\sqrt2``."""
    text = text.translate(_CHARACTERS)
    text = _DIGIT_GROUPING.sub(",", text)
    text = _COMMAND.sub(lambda command: _SPELLING[command.lastgroup or ""], text)
    text = _SYNONYM.sub(lambda command: _SYNONYM_OF[command[1]], text)
    text = _CONJUNCTION.sub(", ", text)
    text = _NEEDLESS_SPACE.sub("", " ".join(text.split()))
    text = _NEEDLESS_BRACES.sub(r"\1\2", text)
    return _LAST_PERIOD.sub("", text)


# ---------------------------------------------------------------------------------------------
# Wrappers

# Without \text around it, an abbreviation could be a product of variables; a name could not.
_UNIT_NAME = (
    "(?:degree|radian|unit|inch|foot|feet|yard|mile|meter|metre|centimeter|millimeter|kilometer"
    "|second|minute|hour|day|week|month|year|gram|kilogram|pound|ounce|liter|dollar|cent)(?:e?s)?"
)
_UNIT_ABBREVIATION = "(?:mm|cm|m|km|in|ft|yd|mi|s|sec|min|h|hr|g|kg|mg|lb|oz|L|mL|mph|rad)"
_UNIT = (
    rf"(?:(?:square|sq\.?|cubic) ?)?(?:{_UNIT_NAME}|{_UNIT_ABBREVIATION}\.?)"
    rf"(?:(?: ?per ?|/)(?:{_UNIT_NAME}|{_UNIT_ABBREVIATION}))?(?: squared| cubed|\^[23])?"
)
_TEXT_UNIT = re.compile(rf"((?:(?!\\text).)*[0-9A-Za-z)\]}}])\\text\{{{_UNIT}\}}(?:\^[23])?")
# Degrees and percents are dropped from whole numbers only: `\cos60^\circ` is not `\cos60`.
_NUMBER_UNIT = re.compile(
    rf"(.*[0-9}}])(?:\\?%|°|\\degree|\^\\circ|\^\{{\\circ\}}|(?:(?:square|cubic) )?{_UNIT_NAME})"
)
_CHOICE = re.compile(r"\(?([A-Z])[):]")
_NAME = r"(?<![A-Za-z\\])[A-Za-z]|\\(?:alpha|beta|gamma|theta|lambda|mu|phi)(?![A-Za-z])"
_ASSIGNMENT = re.compile(rf"(?:{_NAME})(?:=|\\in(?![A-Za-z]))([^=]+)")
_VARIABLE = re.compile(_NAME)


def _unwrap(text: str) -> str:
    """One layer less around the answer."""
    if match := _TEXT_UNIT.fullmatch(text) or _CHOICE.fullmatch(text):
        return match[1]
    if (match := _NUMBER_UNIT.fullmatch(text)) and NUMBER.fullmatch(match[1]):
        return match[1]
    if (match := _ASSIGNMENT.fullmatch(text)) and not _VARIABLE.search(match[1]):
        return match[1]
    if text.startswith(r"\text{"):
        inside = content(text.removeprefix(r"\text"), "{", "}")
    else:
        inside = content(text, "{", "}")
    return text if inside is None else inside
