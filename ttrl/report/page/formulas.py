"""Formulas in what a model wrote, LaTeX → MathML; the text is hostile, so the result is a tree."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from xml.etree.ElementTree import Element

from latex2mathml.converter import Converter

LONGEST = 500
"""Characters of a formula; what is longer is shown as it was written."""

DELIMITED = re.compile(
    rf"\$\$([^$]{{1,{LONGEST}}}?)\$\$"
    rf"|\\\[([\s\S]{{1,{LONGEST}}}?)\\\]"
    rf"|\\\(([\s\S]{{1,{LONGEST}}}?)\\\)"
    rf"|\$(?!\s)([^$\n]{{1,{LONGEST}}}?)(?<!\s)\$(?!\d)"
)
"""A formula in a text, as text.js looks for it too; of dollars as pandoc reads them, so that prices
are none."""

MATHS = re.compile(r"[\\^_]")
PROSE = re.compile(r"\$|\\[(\[]|(?<![\\\w])[a-zA-Z]{2,}\s+[a-zA-Z]{2,}")
"""An answer is a formula from end to end with one of the former and none of the latter: delimiters,
or two words in a row."""

DEFINES = re.compile(r"\\(\w*(command|environment)|[egx]?def|let|DeclareMathOperator)(?![a-zA-Z])")
"""Macros are refused: a few lines of them can stand for more than a memory holds."""

ELEMENTS = """math menclose mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot
mrow mspace msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder munderover none"""
KEPT = """accent accentunder columnalign columnlines columnspacing depth display displaystyle fence
form height largeop linebreak linethickness lspace mathvariant maxsize minsize movablelimits
notation rowlines rowspacing rspace scriptlevel separator stretchy symmetric voffset width"""
TAGS, ATTRIBUTES = frozenset(ELEMENTS.split()), frozenset(KEPT.split())
"""What a formula may be made of; no address, class, style or colour is."""

VALUE = re.compile(r"[\w.+% -]{1,60}", re.ASCII)
ENTITY = re.compile(r"&#x([0-9A-Fa-f]{1,6});")
Tree = list[object]
"""An element: ``["mfrac", {}, ["mn", {}, "1"], ["mn", {}, "2"]]``; text is a string."""


@lru_cache(maxsize=50_000)
def mathml(latex: str) -> Tree | None:
    """Convert a formula to the tree of a MathML element; never raises.

    Args:
        latex: without its delimiters.

    Returns:
        The tree, of `TAGS` and `ATTRIBUTES` alone; None: it is too long or cannot be read, and is
        to be shown as it was written.
    """
    if len(latex) > LONGEST or DEFINES.search(latex):
        return None
    if not all(letter.isprintable() or letter in "\n\t" for letter in latex):
        return None  # controls, which the page shows by their codes
    try:
        return _tree(Converter().convert_to_element(latex.replace("{aligned}", "{align*}")))
    except Exception:  # the parser has exceptions of its own, and hostile text finds others
        return None


def formulas_in(texts: Iterable[str], answers: Iterable[str | None] = ()) -> dict[str, Tree]:
    r"""Convert the formulas that texts contain, and answers that are one: ``\frac{1}{2}``."""
    given = [answer for answer in answers if answer is not None]
    found = (match for text in (*texts, *given) for match in DELIMITED.finditer(text))
    asked = [next(filter(None, match.groups())) for match in found]
    asked += [answer for answer in given if MATHS.search(answer) and not PROSE.search(answer)]
    trees = {latex: mathml(latex) for latex in dict.fromkeys(asked)}
    return {latex: tree for latex, tree in trees.items() if tree is not None}


def _tree(element: Element) -> Tree:
    """Return an element as JSON; a ValueError if it is none of `TAGS`."""
    if element.tag not in TAGS:
        raise ValueError(f"{element.tag} in MathML")
    kept = {
        name: value
        for name, value in element.attrib.items()
        if name in ATTRIBUTES and VALUE.fullmatch(value)
    }
    text = [_decoded(element.text)] if element.text else []
    return [element.tag, kept, *text, *map(_tree, element)]


def _decoded(text: str) -> str:
    """Return text whose characters latex2mathml has written as ``&#x003B1;``."""
    return ENTITY.sub(lambda match: chr(int(match[1], 16)), text)
