r"""Plain-text mathematics as LaTeX: ``4*sqrt(2)`` is ``4\cdot\sqrt{2}``, ``x**2`` is ``x^2``.

What models without LaTeX write, and what calculators print. Only words that are nothing else are
read: ``nu``, ``xi`` and ``mu`` could be products.
"""

from __future__ import annotations

import re

_SPELLED = (
    "sqrt pi exp ln log sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan "
    "alpha beta gamma delta theta lambda sigma omega"
)
_COMMANDS = {name: f"\\{name} " for name in _SPELLED.split()} | {
    "asin": r"\arcsin ",
    "acos": r"\arccos ",
    "atan": r"\arctan ",
    "inf": r"\infty ",
    "infty": r"\infty ",
    "infinity": r"\infty ",
    "oo": r"\infty ",
    "cbrt": r"\sqrt[3]",
}
_WORD = re.compile(rf"(?<![A-Za-z\\])(?:{'|'.join(_COMMANDS)})(?![A-Za-z])")
_WORD_OF_TWO = re.compile("[a-z]{2}")
_LOGARITHM = re.compile(r"(?<![A-Za-z])\\?log(10|2)(?= ?\()")
_BOLD = re.compile(r"\*\*([^*]+)\*\*")
_SIGNS = {
    "<=": r"\leq ",
    "=<": r"\leq ",
    ">=": r"\geq ",
    "==": "=",
    "**": "^",
    "*": r"\cdot ",
    "...": r"\ldots ",
}
_SIGN = re.compile(r"<=|>=|==?|\*\*|(?<!\^)(?<!\^\{)\*|\.\.\.")
# `5!=120` may say that a factorial is 120: without a space only a letter is unequal.
_UNEQUAL = re.compile(r"(?: |(?<=[A-Za-z]))!= ?|=/=|\\not ?= ?")
_POWER = re.compile(r"(?<=\^)([0-9]+\.[0-9]+|[0-9]{2,})(?![0-9A-Za-z.!({\\^])")
_NEGATIVE_POWER = re.compile(r"\^ ?(-[0-9]+|-[A-Za-z])(?![0-9A-Za-z.!({\\^])")


def plain(text: str) -> str:
    """Write in LaTeX what can be read in one way only."""
    if match := _BOLD.fullmatch(text):
        text = match[1]
    if "=" in text or "*" in text or "..." in text:
        if "=" in text:
            text = _UNEQUAL.sub(r"\\neq ", text)
        powers = "**" in text
        text = _SIGN.sub(lambda sign: _SIGNS.get(sign[0], sign[0]), text)
        if powers:  # Python's, where `x**12` is no `x^12`, whose author may have meant x^1 2
            text = _POWER.sub(r"{\1}", text)
    if _WORD_OF_TWO.search(text):
        text = _LOGARITHM.sub(lambda match: rf"\log_{{{match[1]}}}", text)
        text = _WORD.sub(lambda word: _COMMANDS[word[0]], text)
    if "^-" in text:
        text = _NEGATIVE_POWER.sub(r"^{\1}", text)
    return _arguments(text) if "(" in text else text


_CALL = re.compile(
    r"(?P<call>[\^_]|\\sqrt(?:\[[0-9]\])?|(?<![A-Za-z\\])(?:abs|floor|ceil)) ?\("
    r"|[(\[)\]]|\\[A-Za-z]+"
)
_FRAMES = {"abs": ("|", "|"), "floor": (r"\lfloor ", r"\rfloor "), "ceil": (r"\lceil ", r"\rceil ")}


def _arguments(text: str) -> str:
    r"""Write ``\sqrt(2)`` and ``x^(1/2)`` with braces, ``abs(x)`` with bars."""
    pieces: list[str] = []
    closings: list[str] = []  # "" where any bracket may close: an interval's
    end = 0
    for token in _CALL.finditer(text):
        written = token[0]
        if call := token["call"]:
            written, closing = _FRAMES.get(call) or (f"{call}{{", "}")
            closings.append(closing)
        elif written in ("(", "["):
            closings.append("")
        elif written in (")", "]"):
            if not closings or (closings[-1] and written == "]"):
                return text
            written = closings.pop() or written
        pieces += [text[end : token.start()], written]
        end = token.end()
    return text if closings else "".join(pieces) + text[end:]
