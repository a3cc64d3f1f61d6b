r"""Numbers: integers, decimals, fractions, mixed, repeating and in scientific notation."""

from __future__ import annotations

import re
from fractions import Fraction

from ttrl.answers.brackets import BRACKET

_ARGUMENT = r"(?:[0-9]|\{[+-]?[0-9]+\})"
NUMBER = re.compile(
    rf"""
    (?P<sign> [+-]? )
    (?: (?P<decimal> [0-9]+\.?(?:(?<=\.)[0-9]+)? | \.[0-9]+ )
        (?: [eE] (?P<e> [+-]?[0-9]{{1,2}} )
          | (?: \\cdot[ ]? | x ) 10\^
            (?: (?P<ten> [0-9]{{1,2}} ) | \{{ (?P<to> [+-]?[0-9]{{1,2}} ) \}} )
        )?
      | (?: (?P<whole> [0-9]+ ) (?: [ ] | (?=\\) ) )?       # of a mixed number
        (?: \\frac (?P<top> {_ARGUMENT} ) [ ]? (?P<bottom> {_ARGUMENT} )
          | (?P<dividend> [0-9]+ ) / (?P<divisor> [0-9]+ ) )
      | (?P<start> [0-9]*\.(?P<places>[0-9]*) )             # and then for ever
        (?: \\(?:overline|bar|dot) (?: \{{ (?P<period>[0-9]+) \}} | (?P<digit>[0-9]) )
          | \\dot (?P<first>[0-9]) (?P<between>[0-9]*) \\dot (?P<last>[0-9])
          | (?<=\.) \( (?P<bracketed>[0-9]+) \) ) )
    """,
    re.VERBOSE,
)  # fmt: skip
CANONICAL_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:/[0-9]+)?")


def number(text: str) -> str:
    """Return a number as an integer or a fraction in lowest terms; other text unchanged."""
    match = NUMBER.fullmatch(text)
    if match is None:
        return text
    if match["decimal"]:
        if text.isdecimal():
            return text.lstrip("0") or "0"
        exponent = match["e"] or match["ten"] or match["to"]
        value = Fraction(match["decimal"].rstrip("."))
        if exponent:
            value *= Fraction(10) ** int(exponent)
    elif match["start"]:
        places = match["places"]
        repeated = match["period"] or match["digit"] or match["bracketed"]
        repeated = repeated or match["first"] + match["between"] + match["last"]
        value = Fraction(f"0{match['start']}0") + Fraction(
            int(repeated), 10 ** len(places) * (10 ** len(repeated) - 1)
        )
    else:
        top = int((match["top"] or match["dividend"]).strip("{}"))
        bottom = int((match["bottom"] or match["divisor"]).strip("{}"))
        mixed = match["whole"] is not None
        if bottom == 0 or (mixed and not 0 <= top < bottom):
            return text
        value = Fraction(top, bottom) + int(match["whole"] or 0)
    return str(-value if match["sign"] == "-" else value)


# ---------------------------------------------------------------------------------------------
# Commas: of thousands, or of a list

_GROUPS = re.compile(r"(?<![0-9.,_^])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[^ ])")
_ARGUMENT_BEFORE = re.compile(r"\\(?:frac|sqrt|binom)$|(?<![A-Za-z\\])[A-Za-z]+$")


def ungrouped(text: str) -> str:
    """Remove the commas inside of numbers, where they are no list's.

    A comma groups digits if exactly three follow, one to three that do not begin with 0 stand
    before, and no space is around. Between the brackets of a tuple, set or argument that is not
    enough: ``(1,200)`` is a point. There the digits after the comma must begin with a zero, which
    no element does (``(1,000)``), or the brackets must hold another comma, with a space after it,
    which then is the separator (``(1,200, 1,300)``).
    """
    groups = list(_GROUPS.finditer(text))
    if not groups:
        return text
    spaced = _separated_by_spaces(text)
    pieces, end = [], 0
    for group in groups:
        is_list = spaced[group.start()]
        before = _ARGUMENT_BEFORE.search(text[max(0, group.start() - 20) : group.start()])
        if before is None and (is_list is None or is_list or ",0" in group[0]):
            pieces += [text[end : group.start()], group[0].replace(",", "")]
            end = group.end()
    return "".join(pieces) + text[end:]


def _separated_by_spaces(text: str) -> list[bool | None]:
    r"""Say per character whether the innermost ``(``, ``[`` or ``\{`` around it holds ``, ``.

    None outside of them: TeX's own braces are no list.
    """
    found: list[bool | None] = [None] * (len(text) + 1)
    stack: list[tuple[int, bool, bool]] = []  # where it opened, whether a list, whether spaced
    for token in BRACKET.finditer(text):
        if token.lastgroup == "open":
            stack.append((token.end(), token[0] in ("(", "[", r"\{"), False))
        elif token.lastgroup == "close" and stack:
            start, is_list, spaced = stack.pop()
            if is_list:
                for i in range(start, token.start()):
                    if found[i] is None:
                        found[i] = spaced
        elif token[0] == "," and stack and text[token.end() : token.end() + 1] == " ":
            # Braces of TeX do not hide a comma's neighbours: it is the innermost list's.
            start, is_list, _ = stack[-1]
            stack[-1] = (start, is_list, True)
    return found
