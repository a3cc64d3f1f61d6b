r"""What a number counts: ``5\text{ cm}`` is the value 5 and the unit ``cm``.

A unit may be left out; `ttrl.answers.grader` says what that means for answers that give another.
Any noun is a unit, known or not: ``12\text{ ways}``. Known ones have one name: hours are ``h``,
dollars and ``\$`` are ``dollar``, and "units", which name none, are no unit.
"""

from __future__ import annotations

import re
from fractions import Fraction

from ttrl.answers.equations import constant
from ttrl.answers.numbers import NUMBER, number

_NAMES = {
    "m": "meter metre",
    "cm": "centimeter centimetre",
    "mm": "millimeter millimetre",
    "km": "Km kilometer kilometre",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "s": "sec second",
    "min": "minute",
    "h": "hr hour",
    "day": "",
    "week": "wk",
    "month": "",
    "year": "yr",
    "g": "gram gramme",
    "kg": "Kg kilogram kilo",
    "mg": "milligram",
    "lb": "lbs",
    "oz": "ounce",
    "L": "l liter litre",
    "mL": "ml milliliter millilitre",
    "mi/h": "mph",
    "km/h": "kph kmh",
    "rad": "radian",
    "degree": "deg °",
    "dollar": "usd $ buck",
    "cent": "¢",
    "euro": "eur €",
    "pound": "gbp £",
    "yen": "jpy ¥",
    "%": "percent pct",
    "c": "celsius",
    "f": "fahrenheit",
    "th": "st nd rd",
    "unit": "",
}
_UNIT_OF = {word: unit for unit, words in _NAMES.items() for word in words.split()}
_UNIT_OF |= {unit: unit for unit in _NAMES}
_KNOWN = {word for word in _UNIT_OF if word.isalpha() and len(word) > 1}
_SYMBOLS = {
    *(prefix + unit for prefix in ("n", "m", "c", "k", "M", "G") for unit in "mgsLWJNVAKTBb"),
    *(prefix + unit for prefix in ("", "m", "k", "M", "G") for unit in ("Pa", "Hz", "eV")),
    *(*"mgshLlNJWVAKTCF", "ml", "kWh", "mol"),
}
"""Symbols whose capitals are factors: ``mW`` is not ``MW``. Other lone letters are variables."""
_UNIT_OF |= {symbol: symbol for symbol in _SYMBOLS - _UNIT_OF.keys()}
_GLUED = ("cm", "mm", "km", "kg", "th", "st", "nd", "rd")
"""Units of two letters that can stand right behind a number and be no product."""
_NO_UNIT = ("total", "different", "distinct", "possible", "exactly", "only", "in")
"""Words that say nothing about what is counted. (Inches are ``in`` only alone.)"""
_NUMERALS = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "lakh": 10**5,
    "crore": 10**7,
}
_OTHER_VALUE = re.compile(
    # Numbers and parts
    r"[a-z]*illi(?:on|ard)s?|(?:hundred|thousand|dozen|lakh|crore|score)s?|gross|googol|myriads?"
    r"|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]*teen|[a-z]+ty"
    r"|first|third|thirds|hal[fv]e?s?|tens|ones|quarters?|doubled?|tripled?|twice|thrice|infinity"
    r"|(?!(?:mon|leng|wid|dep|pa|boo|bir|mo|ba|clo)ths?$)[a-z]+ths?"
    # Operations
    r"|plus|minus|times|over|divided|multiplied|factorial|power|root|sqrt|reciprocal|inverse"
    r"|transposed?|conjugate|complement|choose|mod|modulo|base|binary|octal|decimal|hex[a-z]*"
    r"|remainder|squareroot|absolute|repeating|recurring|imaginary|prime|log|ln|sin|cos|tan|exp|pi|product|sum|difference"
    # What it is in relation to, or under which condition
    r"|or|and|if|at|least|most|more|less|fewer|greater|than|above|below|under|between|from|by|to"
    r"|not|no|none|never|negative|when|where|for|unless|except|with|without|otherwise|is|are|but"
    r"|out|up|until|through|provided|given|assuming|such|true|false|yes"
)
"""Words after which the value is another one than before."""
_SHORT = (
    "men boy cup box car cat dog pen egg hat cow bus row way pie bag jar can cap key toy tie ton"
)
_SHORT_NOUNS = frozenset(_SHORT.split())
"""The only nouns of fewer than four letters; others may be products."""
_WITH_A_NOUN = ("of", "the", "a", "an", "all", "on", "as")

# ---------------------------------------------------------------------------------------------
# Around a value

# Digits in the text are a power behind a unit; with others, as in `101\text{ base 2}`, it is none.
_TEXT = re.compile(
    r"(?P<value>.*[0-9A-Za-z)\]}|])\\text\{"
    r"(?P<unit> ?[A-Za-z%](?:[A-Za-z .'/%-]|(?<=[A-Za-z])(?:\^-?[1-9]|[23])(?![0-9A-Za-z]))*)"
    r"\}(?:\^(?P<power>[1-9]|\{-?[1-9]\}))?"
)
_SIGN = re.compile(r"(?P<value>.*[0-9)}])(?P<unit>%|\\degree ?(?P<scale>[CF])?|[€£¥¢])")
_DEGREE_SCALE = re.compile(r"\\degree ?\\text\{ ?([CF]) ?\}$")
_CURRENCY = re.compile(r"(?P<sign>[+-]?)(?:US ?)?(?P<unit>\\\$|[€£¥])(?P<value>[^$€£¥]*)")
_BARE = re.compile(
    r"(?P<value>(?:[^=]*=)?(?:[^A-Za-z\\=]|\\[A-Za-z]+)*[0-9}\])])(?P<space> ?)"
    r"(?P<words>[A-Za-z]{2,}(?:[ /][A-Za-z]+)*)(?P<power>\^[23])?\.?"
)
_TOKEN = re.compile(r"[A-Za-z'%-]+|/|\^?-?[1-9]")
_NOUN = re.compile(r"(?=.{4})[A-Za-z][a-z'-]+")
_BEFORE = {"square": "2", "sq": "2", "cubic": "3"}
_BEHIND = {"squared": "2", "cubed": "3"}
_PART = re.compile(r"(?:cent|%|pct) of", re.IGNORECASE)
_TIME_OF_DAY = re.compile(r"(?<![A-Za-z])[ap]\.?m\.?(?![A-Za-z])", re.IGNORECASE)


def marked(text: str) -> str:
    r"""Put ``\text`` around the words after a number: ``5 apples`` is ``5\text{apples}``.

    Letters glued to the number are marked only if they are a known unit of more than one letter,
    since ``5abc`` may be a product.
    """
    if not (text[-1:].isalpha() or text.endswith(("^2", "^3", "."))):
        return text
    match = _BARE.fullmatch(text)
    if match is None:
        return text
    words = match["words"].split()
    first = words[0].partition("/")[0].lower()
    known = first in _KNOWN or (first[-1:] == "s" and first[:-1] in _KNOWN)
    known = known or first in _BEFORE or first in _NUMERALS
    if not match["space"] and len(first) == 2:
        known = first in _GLUED
    noun = len(first) > 4 or (len(first) == 4 and first.endswith("s")) or len(words) > 1
    if not (known or (match["space"] and noun)):
        return text
    return rf"{match['value']}\text{{{match['words']}{match['power'] or ''}}}"


def without_unit(text: str) -> tuple[str, str]:
    r"""Split a text into value and unit; the text itself and "" if there is no unit.

    Degrees and percents are a unit of whole numbers only: ``\cos60^\circ`` is not ``\cos60``.
    """
    if text.endswith("}"):
        text = _DEGREE_SCALE.sub(r"\\degree \1", text)
    if (match := _SIGN.fullmatch(text)) is not None:
        if NUMBER.fullmatch(match["value"]) is None:
            return text, ""
        unit = "degree" if match["unit"].startswith(r"\degree") else _UNIT_OF[match["unit"]]
        return match["value"], " ".join(filter(None, (unit, (match["scale"] or "").lower())))
    if (match := _CURRENCY.fullmatch(text)) is not None and match["value"]:
        return match["sign"] + match["value"], _UNIT_OF[match["unit"].removeprefix("\\")]
    if r"\text{" not in text:
        return text, ""
    match = _TEXT.fullmatch(text)
    if match is None or r"\text" in match["value"]:
        return text, ""
    return _measured(match["value"], match["unit"], match["power"]) or (text, "")


def _measured(value: str, words: str, power: str | None) -> tuple[str, str] | None:
    """Return the value times its numerals, and the unit's name; None if the words are no unit."""
    tokens = _TOKEN.findall(words)
    if not tokens or _TIME_OF_DAY.search(words) or _PART.search(words):
        return None
    while tokens and tokens[0].lower() in _NUMERALS:
        amount = number(value)
        if not re.fullmatch(r"-?[0-9]+(?:/[0-9]+)?", amount):
            return None
        value = str(Fraction(amount) * _NUMERALS[tokens.pop(0).lower()])
    if any(_OTHER_VALUE.fullmatch(w.lower()) for token in tokens for w in token.split("-")):
        return None
    unit = _unit(tokens + ([f"^{power.strip('{}')}"] if power else []), _is_amount(value))
    return None if unit is None else (value, unit)


def _is_amount(value: str) -> bool:
    r"""Say whether a value can only be a number.

    Behind ``A`` or a matrix, ``\text{T}`` is no tesla.
    """
    value = value.rpartition("=")[2]
    digits = re.search(r"[0-9]|\\pi(?![A-Za-z])", value) is not None
    return digits and constant(value) and r"\begin" not in value and not value.endswith("]")


def _unit(tokens: list[str], of_amount: bool) -> str | None:
    r"""Name the unit of these words: ``square feet``, ``sq. ft`` and ``ft squared`` are ``ft^2``.

    None for what is a factor or an operation (``5\text{i}``, ``5\text{ squared}``), and for nouns
    and short symbols behind something else than an amount.
    """
    found: list[str] = []
    raised, raisable = "", False
    for token in tokens:
        name = token.lower()
        behind = _BEHIND.get(name) or (token.lstrip("^") if token[-1].isdigit() else "")
        if behind:
            if not raisable:
                return None
            found[-1] += f"^{behind}" if behind != "1" else ""
            raisable = False
        elif name in ("per", "/"):
            found.append("/")
            raisable = False
        elif name in _BEFORE:
            raised = _BEFORE[name]
        elif name not in _NO_UNIT or len(tokens) == 1 or (name == "in" and raised):
            known = _known(token)
            if name in _WITH_A_NOUN and len(tokens) > 1:
                found.append(name)
                continue
            if known is None and not (_NOUN.fullmatch(token) or token in _SHORT_NOUNS):
                return None
            if not of_amount and (known is None or len(token) <= 2):
                return None
            if raised and known is None:
                return None
            found.append((known or _singular(name)) + (f"^{raised}" if raised else ""))
            raisable, raised = known is not None and not raised, ""
    if raised:
        return None
    unit = " ".join(found).replace(" / ", "/").strip()
    return "" if unit.partition("^")[0] == "unit" else unit


def _known(token: str) -> str | None:
    """Return the unit's name; None if it is not known by that spelling."""
    name = token.lower()
    if token in _UNIT_OF or name in _SYMBOLS:
        return _UNIT_OF.get(token)
    return _UNIT_OF.get(name) or _UNIT_OF.get(_singular(name))


def _singular(name: str) -> str:
    return name[:-1] if len(name) > 2 and name.endswith("s") and not name.endswith("ss") else name
