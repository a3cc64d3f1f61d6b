r"""What TeX, Unicode or a keyboard prints alike: one spelling of each symbol, and no ink moved.

``\left(3,\,\dfrac12\right]``, ``(3, ½]`` and ``(3,\frac{1}{2}]`` are one text afterwards; so are
``x²``, ``x^{2}`` and ``x**2``, as far as that needs no understanding of what the text says.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from itertools import groupby

from ttrl.answers.numbers import ungrouped
from ttrl.answers.plain import plain
from ttrl.answers.units import marked

# ---------------------------------------------------------------------------------------------
# Characters beyond ASCII

_LEVELS = {"<super>": "^", "<sub>": "_"}
_DECIMAL_ROOT = re.compile(r"√ ?([0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?)")
_FRACTION = re.compile("[\N{VULGAR FRACTION ONE QUARTER}-\N{VULGAR FRACTION THREE QUARTERS}⅐-⅞↉]")
_CIRCLED = re.compile("[\u2460-\u2473\u24b6-\u24ea\u3251-\u325f\u32b1-\u32bf]")
_THIN_SPACE = re.compile("(?<=[0-9])[\u00a0\u2006-\u2009\u202f](?=[0-9])")
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)
_SET_LETTER = re.compile(
    "[\N{DOUBLE-STRUCK CAPITAL C}\N{DOUBLE-STRUCK CAPITAL N}\N{DOUBLE-STRUCK CAPITAL P}"
    "\N{DOUBLE-STRUCK CAPITAL Q}\N{DOUBLE-STRUCK CAPITAL R}\N{DOUBLE-STRUCK CAPITAL Z}]"
)
_SYMBOLS = {
    "-": "\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FIGURE DASH}\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}",
    "'": "\N{PRIME}\N{RIGHT SINGLE QUOTATION MARK}",
    '"': "“”„",
    "/": "\N{FRACTION SLASH}\N{DIVISION SLASH}",
    r"\cdot ": "\N{MULTIPLICATION SIGN}·⋅∙•\N{ASTERISK OPERATOR}",
    r"\div ": "÷",
    r"\infty ": "∞",
    r"\leq ": "≤⩽≦",
    r"\geq ": "≥⩾≧",
    r"\neq ": "≠",
    r"\approx ": "≈",
    r"\pm ": "±",
    r"\mp ": "∓",
    r"\cup ": "\N{UNION}",
    r"\cap ": "\N{INTERSECTION}",
    r"\in ": "∈",
    r"\emptyset ": "∅\N{LATIN SMALL LETTER O WITH STROKE}",
    r"\sqrt ": "√",
    r"\sqrt[3]": "∛",
    r"\degree ": "°",
    r"\lor ": "\N{LOGICAL OR}",
    r"\land ": "∧",
    r"\angle ": "∠",
    r"\to ": "→",
}
_CHARACTERS = str.maketrans(
    {
        c: f"\\{name} "
        for c, name in zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ", _GREEK.split(), strict=True)
    }
    | {c: symbol for symbol, characters in _SYMBOLS.items() for c in characters}
)


def spaced(answer: str) -> str:
    """Return the answer in printable characters with single spaces."""
    if not answer.isprintable():
        answer = _THIN_SPACE.sub(r"\\,", answer)
        answer = "".join(c if c.isprintable() else " " for c in answer)
    return " ".join(answer.split())


def _ascii(text: str) -> str:
    """Replace the characters that LaTeX has a name for."""
    text = text.replace("\N{MASCULINE ORDINAL INDICATOR}", "°")  # whose keyboards have no other
    text = "".join(_on_base_line(sign, "".join(run)) for sign, run in groupby(text, _level))
    text = _FRACTION.sub(_spelled_fraction, text)
    text = _DECIMAL_ROOT.sub(r"\\sqrt{\1}", text)
    text = _SET_LETTER.sub(lambda c: rf"\mathbb{{{unicodedata.normalize('NFKC', c[0])}}}", text)
    text = _CIRCLED.sub(r" \g<0> ", text)  # no digit of the number beside it
    # A compatible character is another shape of the same one: full-width digits, italic letters.
    return unicodedata.normalize("NFKC", text).translate(_CHARACTERS)


def _level(character: str) -> str:
    """Return "^" or "_" for a raised or lowered shape of a character, "" for any other."""
    return _LEVELS.get(unicodedata.decomposition(character).partition(" ")[0], "")


def _on_base_line(sign: str, run: str) -> str:
    if not sign:
        return run
    inside = unicodedata.normalize("NFKC", run).translate(_CHARACTERS)
    return f"{sign}{{{inside}}}"


def _spelled_fraction(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match[0]).partition("\N{FRACTION SLASH}")
    return rf"\frac{{{top}}}{{{bottom}}}"


# ---------------------------------------------------------------------------------------------
# Commands of TeX

_SYNONYMS = {
    r"\text": "textbf textit textrm textsf texttt textup textnormal emph mathrm mathsf mathtt mbox "
    "hbox",
    " ": "mathbf mathit mathnormal boldsymbol bm pmb underline displaystyle textstyle scriptstyle "
    "limits left right quad qquad enspace thinspace space big Big bigg Bigg bigl Bigl biggl Biggl "
    "bigr Bigr biggr Biggr bigm Bigm biggm Biggm",
    r"\frac": "dfrac tfrac cfrac",
    r"\binom": "dbinom tbinom",
    r"\ldots": "dots cdots dotsc dotsb dotsm",
    "<": "lt",
    ">": "gt",
    "|": "vert lvert rvert mid",
    r"\|": "Vert lVert rVert",
    r"\{": "lbrace",
    r"\}": "rbrace",
    "[": "lbrack",
    "]": "rbrack",
    ":": "colon",
    "'": "prime",
    r"\leq": "le leqslant leqq",
    r"\geq": "ge geqslant geqq",
    r"\neq": "ne",
    r"\approx": "thickapprox approxeq",
    r"\cdot": "times ast",
    r"\infty": "infin infinity",
    r"\emptyset": "varnothing",
    r"\degree": "textdegree",
    r"\lor": "vee",
    r"\land": "wedge",
    r"\to": "rightarrow",
    r"\$": "textdollar",
    "%": r"percent",
}
_SPELLING = {f"\\{word}": chosen for chosen, words in _SYNONYMS.items() for word in words.split()}
_SPELLING |= dict.fromkeys(
    ("~", "$", "\\", *(f"\\{c}" for c in "!,;:> ()[]-")),  # `\` alone was `\ `, trimmed
    " ",
)
_SPELLING |= {r"\%": "%", r"\_": "_"}
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.|\Z)|[~$]")
_ARGUMENTS = re.compile(
    r"""
      \\(?:left|right)[ ]?\.                                       # brackets without ink
    | \\(?:[hv]space\*?|(?:text)?color)[ ]?\{[^{}]{0,40}\}
    | \\(?P<kind>operatorname\*?|math(?:rm|bb|cal))[ ]?
      (?: \{[ ]?(?P<word>[A-Za-z]{1,9})[ ]?\} | (?P<letter>[A-Za-z])(?![A-Za-z]) )
    | \\text[ ]?\{[ ]?(?P<sign>\\?[$%€£¥])[ ]?\}
    """,
    re.VERBOSE,
)
_HAS_ARGUMENTS = re.compile(
    r"\\(?:left ?\.|right ?\.|[hv]sp|co|textco|op|math|text ?\{ ?\\?[$%€£¥])"
)
_FUNCTIONS = "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan ln log exp"
_FUNCTION_NAMES = frozenset(_FUNCTIONS.split())


def _argument(match: re.Match[str]) -> str:
    r"""Replace a command and its argument: ``\mathrm e`` is ``e``, ``\mathrm{m}`` a unit."""
    if match["sign"]:
        return r"\$" if match["sign"].endswith("$") else match["sign"]
    word = match["word"] or match["letter"]
    if word is None:
        return " "
    if match["kind"] in ("mathbb", "mathcal"):
        return rf"\{match['kind']}{{{word}}}"
    if word in _FUNCTION_NAMES:
        return f"\\{word} "
    return f" {word}" if word in ("e", "i") else rf"\text{{{word}}}"


# ---------------------------------------------------------------------------------------------
# Spacing, braces, conjunctions

# Separators that are no list's: after `{,}` and `,\!` there is no space, and `\,` has no comma.
_THOUSANDS = re.compile(
    r"(?<![0-9.,])[1-9][0-9]{0,2}(?:(?:\{,\}|\\,|,\\! ?)[0-9]{3})+(?![0-9])"
    r"|\.[0-9]{3}(?:\\,[0-9]{1,3})+(?![0-9])"
)
_GROUPING = re.compile(r"\{,\}|\\,|,\\! ?")
_DECIMAL_COMMA = re.compile(r"(?<=[0-9])\{,\} ?(?=[0-9])")  # `1{,}234` is English, `3{,}14` not
_DEGREE = re.compile(r"\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\})|\\degrees?(?![A-Za-z])")
_CONJUNCTION = re.compile(r"(?:, ?| )(and|or) |,? ?\\text ?\{ ?,? ?(and|or) ?\}")
_AND_FRACTION = re.compile(
    r"(?<![0-9./,])[0-9]+ ?(?:and|\\text ?\{ ?and ?\}) ?"
    r"(?:(?P<top>[0-9]+)/(?P<bottom>[0-9]+)"
    r"|\\frac ?(?P<over>[0-9]|\{[0-9]+\}) ?(?P<under>[0-9]|\{[0-9]+\}))(?![0-9A-Za-z\\])"
)
_INEQUALITY = re.compile(r"[<>]|\\[lg]eq")
# A space stays between letters (`\pi r`), between digits (`2 1/2` is not `21/2`), after a comma.
_NEEDLESS_SPACE = re.compile(r" (?!(?<=[A-Za-z] )[A-Za-z]|(?<=[0-9] )[0-9]|(?<=, ))")
_NEEDLESS_BRACES = re.compile(r"(?<!\\)(?<!\\text)\{([0-9])\}|(?<=[\^_])\{([A-Za-z])\}")
_LAST_STOPS = re.compile(r"(?:(?<![.\\])[.,;])+$")


def clean(text: str) -> str:
    r"""Remove what is printed alike, or what only moves ink: ``\sqrt {2}\,`` is ``\sqrt2``."""
    if not text.isascii():
        text = _ascii(text)
    if "\\" in text or "$" in text or "~" in text:
        text = _commands(text)
    elif "{,}" in text:
        text = _without_separators(text)
    text = marked(plain(text))
    if "," in text:
        text = ungrouped(text)
    if " " in text or r"\text" in text:
        conjoined = " and " in text or " or " in text or r"\text" in text
        if conjoined and not _has_mixed_number(text):
            text = _CONJUNCTION.sub(_separator(text), text)
        text = _NEEDLESS_SPACE.sub("", " ".join(text.split())).replace(r"\text{}", "")
    if "{" in text:
        while (simpler := _NEEDLESS_BRACES.sub(r"\1\2", text)) != text:
            text = simpler
    return _LAST_STOPS.sub("", text) if text.endswith((".", ",", ";")) else text


def _commands(text: str) -> str:
    """Write one command for each meaning, and none for layout."""
    if "\\," in text or "{,}" in text or ",\\!" in text:
        text = _without_separators(text)
    if _HAS_ARGUMENTS.search(text):
        text = _ARGUMENTS.sub(_argument, text)
    if "circ" in text or "degree" in text:
        text = _DEGREE.sub(r"\\degree ", text)
    return _COMMAND.sub(lambda command: _SPELLING.get(command[0], command[0]), text)


def _without_separators(text: str) -> str:
    text = _THOUSANDS.sub(lambda number: _GROUPING.sub("", number[0]), text)
    return _DECIMAL_COMMA.sub(".", text).replace("{,}", ",").replace(",\\!", ",")


def _has_mixed_number(text: str) -> bool:
    """Say whether a text has ``5 and 1/2``, which is one number more often than a list."""
    match = _AND_FRACTION.search(text)
    if match is None:
        return False
    top, bottom = match["top"] or match["over"], match["bottom"] or match["under"]
    return int(top.strip("{}")) < int(bottom.strip("{}"))


def _separator(text: str) -> Callable[[re.Match[str]], str]:
    """Return what replaces "and" and "or" in a text.

    ``2 or 3`` is a list, ``x<2 or x>3`` a union and ``x>2 and x<3`` an intersection.
    """
    if not _INEQUALITY.search(text):
        return lambda conjunction: ", "
    words = {"and": r"\land ", "or": r"\lor "}
    return lambda conjunction: words[conjunction[1] or conjunction[2]]
