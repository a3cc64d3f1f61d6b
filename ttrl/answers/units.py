r"""What a number counts: ``5\text{ cm}`` is the value 5 and the unit ``cm``.

A unit may be left out; `ttrl.answers.grader` says what that means for answers that give another.
Any noun is a unit, known or not: ``12\text{ ways}``. Known ones have one name: hours are ``h``,
dollars and ``\$`` are ``dollar``, and "units", which name none, are no unit.
"""

from __future__ import annotations

import re
from fractions import Fraction

from ttrl.answers.numbers import NUMBER, number

_NAMES = {
    "m": "meter metre",
    "cm": "centimeter centimetre",
    "mm": "millimeter millimetre",
    "km": "kilometer kilometre",
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
    "kg": "kilogram kilo",
    "mg": "milligram",
    "lb": "lbs pound £",
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
    "yen": "jpy ¥",
    "%": "percent pct",
    "c": "celsius",
    "f": "fahrenheit",
    "th": "st nd rd",
}
_UNIT_OF = {word: unit for unit, words in _NAMES.items() for word in words.split()}
_UNIT_OF |= {unit: unit for unit in _NAMES} | {"km2": "km^2", "cm2": "cm^2", "m2": "m^2"}
_KNOWN = {word for word in _UNIT_OF if word.isalpha() and len(word) > 1}
_GLUED = ("cm", "mm", "km", "kg", "th", "st", "nd", "rd")
"""Of two letters: those that can stand right behind a number and be no product."""
_LETTERS = "mgshlLNJWVAKTCFPd%"
"""Units of one letter; others are variables."""
_NO_UNIT = ("unit", "total", "different", "distinct", "possible", "exactly", "only", "in")
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
_CONTINUED = (
    "or and if mod modulo base remainder at least most more less fewer greater than "
    "above below over under plus minus times between from by not negative infinity when where for "
    "unless except with without otherwise is are half quarter third halves thirds quarters fourths "
    "factorial power fifths sixths sevenths eighths ninths tenths hundredths thousandths"
)
_OTHER_VALUE = frozenset(_CONTINUED.split())
"""Words after which the value is another one than before."""

# ---------------------------------------------------------------------------------------------
# Around a value

_TEXT = re.compile(
    r"(?P<value>.*[0-9A-Za-z)\]}|])\\text\{(?P<unit>[A-Za-z .'/^0-9()°%-]+)\}"
    r"(?:\^(?P<power>[1-9]|\{-?[1-9]\}))?"
)
_SIGN = re.compile(r"(?P<value>.*[0-9)}])(?P<unit>%|\\degree ?(?P<scale>[CF])?|[€£¥¢])")
_DEGREE_SCALE = re.compile(r"\\degree ?\\text\{ ?([CF]) ?\}$")
_CURRENCY = re.compile(r"(?P<sign>[+-]?)(?:US ?)?(?P<unit>\\\$|[€£¥])(?P<value>[^$]*)")
_BARE = re.compile(
    r"(?P<value>(?:[^=]*=)?(?:[^A-Za-z\\=]|\\[A-Za-z]+)*[0-9}\])])(?P<space> ?)"
    r"(?P<words>[A-Za-z]{2,}(?:[ /][A-Za-z]+)*)(?P<power>\^[23])?\.?"
)
_WORD = re.compile(r"[^ /^.]+|/|\^")
_TIME_OF_DAY = re.compile(r"(?<![A-Za-z])[ap]\.?m\.?(?![A-Za-z])", re.IGNORECASE)


def marked(text: str) -> str:
    r"""With ``\text`` around the words after a number: ``5 apples`` is ``5\text{apples}``.

    Of glued letters only known units of more than one letter are, since ``5abc`` may be a product.
    """
    if not (text[-1:].isalpha() or text.endswith(("^2", "^3", "."))):
        return text
    match = _BARE.fullmatch(text)
    if match is None:
        return text
    words = match["words"].split()
    first = words[0].partition("/")[0].lower()
    known = first in _KNOWN or (first[-1:] == "s" and first[:-1] in _KNOWN)
    known = known or first in ("square", "sq", "cubic", *_NUMERALS)
    if not match["space"] and len(first) == 2:
        known = first in _GLUED
    noun = len(first) > 4 or (len(first) == 4 and first.endswith("s")) or len(words) > 1
    if not (known or (match["space"] and noun)):
        return text
    return rf"{match['value']}\text{{{match['words']}{match['power'] or ''}}}"


def without_unit(text: str) -> tuple[str, str]:
    """The value and the unit; the text itself and "" if there is none.

    Degrees and percents are a unit of whole numbers only: ``\\cos60^\\circ`` is not ``\\cos60``.
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
    """The value times its numeral, and the unit's name; None if the words are none."""
    tokens = _WORD.findall(words)
    names = [token.lower() for token in tokens]
    if not names or _OTHER_VALUE.intersection(names) or _TIME_OF_DAY.search(words):
        return None
    if names[0] in _NUMERALS:
        amount = number(value)
        if not re.fullmatch(r"-?[0-9]+(?:/[0-9]+)?", amount):
            return None
        value = str(Fraction(amount) * _NUMERALS[names[0]])
        tokens = tokens[1:]
    unit = _unit(tokens, (power or "").strip("{}"))
    return None if unit is None else (value, unit)


def _unit(tokens: list[str], power: str) -> str | None:
    """The name of a unit: ``square feet``, ``sq. ft`` and ``ft squared`` are ``ft^2``.

    None for what is a factor or an operation: ``5\\text{i}``, ``5\\text{ squared}``.
    """
    if len(tokens) == 1 and len(tokens[0]) == 1 and tokens[0] not in _LETTERS:
        return None
    found: list[str] = []
    raised = {"square": "2", "sq": "2", "cubic": "3", "squared": "2", "cubed": "3"}
    for i, token in enumerate(tokens):
        name = token.lower()
        if name in raised:
            power = raised[name]
        elif token == "^" and i + 1 < len(tokens):
            power = tokens[i + 1]
        elif token == "^" or (i and tokens[i - 1] == "^"):
            continue
        elif name in ("per", "/"):
            found.append("/")
        elif name not in _NO_UNIT or len(tokens) == 1:
            found.append(_singular(token))
    unit = " ".join(found).replace(" / ", "/").strip()
    if tokens and not unit and power:
        return None
    if unit == "unit" or not unit:
        return ""
    return f"{unit}^{power}" if power and power != "1" else unit


def _singular(token: str) -> str:
    name = token.lower()
    for spelling in (token, name):
        if spelling in _UNIT_OF:
            return _UNIT_OF[spelling]
    if len(name) > 2 and name.endswith("s") and not name.endswith("ss"):
        name = name[:-1]
    return _UNIT_OF.get(name, name)
