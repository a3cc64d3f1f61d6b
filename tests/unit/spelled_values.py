"""Random answers of known value, in every spelling that people and models use for them.

Each function draws a value and returns it, in a form that == compares exactly, with its spellings.
"""

from __future__ import annotations

from fractions import Fraction
from random import Random
from typing import Any

Spelled = tuple[Any, list[str]]


def _grouped(n: int, separator: str) -> str:
    return f"{n:,}".replace(",", separator)


def integers(rng: Random) -> Spelled:
    n = rng.choice(
        [rng.randint(0, 20), rng.randint(1000, 99999), rng.randint(10**6, 10**9), 1000, 2005, 1200]
    )
    spellings = [f"{n}", f"{n}.0", "".join(chr(0xFF10 + int(digit)) for digit in str(n))]
    spellings += [_grouped(n, s) for s in (",", "{,}", r"\,", ",\\!", "\u2009", "\u202f")]
    sign = rng.choice(["", "-"]) if n else ""
    return int(f"{sign}{n}"), [sign + spelling for spelling in spellings]


def scientific(rng: Random) -> Spelled:
    mantissa, places, e = rng.randint(1, 999), rng.randint(0, 2), rng.randint(-6, 9)
    m = f"{Fraction(mantissa, 10**places).__float__():.{places}f}"
    power = f"{e}" if e >= 0 else f"({e})"
    return Fraction(m) * Fraction(10) ** e, [
        *(f"{m}e{e}", f"{m}E{e:+d}", f"{m}e{e:+03d}", f"{m}*10^{power}", f"{m}*10**{power}"),
        *(
            rf"{m}\times10^{{{e}}}",
            rf"{m} \cdot 10^{{{e}}}",
            f"{m} x 10^{e}",
            f"{m}\N{MULTIPLICATION SIGN}10^{{{e}}}",
        ),
    ]


_VULGAR = {(1, 2): "½", (1, 4): "¼", (3, 4): "¾", (1, 3): "⅓", (2, 3): "⅔", (1, 8): "⅛"}


def fractions(rng: Random) -> Spelled:
    a, b = rng.randint(1, 60), rng.randint(2, 30)
    value = Fraction(a, b)
    whole, rest = divmod(value.numerator, value.denominator)
    spellings = [rf"\frac{{{a}}}{{{b}}}", f"{a}/{b}", rf"\dfrac{{{a}}}{{{b}}}", f"{a} / {b}"]
    if whole and rest:
        top, bottom = rest, value.denominator
        spellings += [rf"{whole}\frac{{{top}}}{{{bottom}}}", f"{whole} {top}/{bottom}"]
        if vulgar := _VULGAR.get((top, bottom)):
            spellings += [f"{whole}{vulgar}", f"{whole} {vulgar}"]
    digits, start = _decimals(rest, value.denominator)
    if start is None:
        spellings += [f"{whole}.{digits or 0}", f"{whole}.{digits}00"]
    else:
        places, period = digits[:start], digits[start:]
        spellings += [rf"{whole}.{places}\{bar}{{{period}}}" for bar in ("overline", "bar")]
        spellings += [rf"{whole}.{places}\dot{{{period}}}"] if len(period) == 1 else []
        spellings += [f"{whole}.({period})"] if not places else []
    return value, spellings


def _decimals(rest: int, bottom: int) -> tuple[str, int | None]:
    """The decimals of rest/bottom by long division, and where they begin to repeat."""
    digits, seen = "", {}
    while rest and rest not in seen:
        seen[rest] = len(digits)
        digit, rest = divmod(rest * 10, bottom)
        digits += str(digit)
    return digits, seen.get(rest)


_WORDS = "IV VI IX XI no on yes even odd AB BA Na An east west abc cab"


def words(rng: Random) -> Spelled:
    word = rng.choice([*_WORDS.split(), "to go", "go to"])
    fonts = [rf"\{f}{{{word}}}" for f in ("text", "textbf", "mathrm", "textit")]
    spellings = [*fonts, rf"\text{{{word.upper()}}}", rf"\text{{{word}.}}", rf"\text{{ {word} }}"]
    return word.casefold(), [*spellings, word]


def roots(rng: Random) -> Spelled:
    a, n, sign = rng.randint(1, 12), rng.choice([2, 3, 5, 6, 7, 10, 11]), rng.choice(["", "-"])
    c, times = (str(a), "*") if a > 1 else ("", "")
    return (sign, a * a * n), [
        *(rf"{sign}{c}\sqrt{{{n}}}", rf"{sign}{c}\sqrt {{{n}}}", rf"{sign}{c}\sqrt({n})"),
        *(f"{sign}{c}{times}sqrt({n})", f"{sign}{c}sqrt({n})", f"{sign}sqrt({a * a * n})"),
        *(f"{sign}{c}√{n}", f"{sign}{c}√({n})", rf"{sign}\sqrt{{{a * a * n}}}"),
        *(f"{sign}{a}*{n}^(1/2)", f"{sign}{a}*{n}**(1/2)", f"{sign}{a}*{n}**0.5"),
        rf"{sign}{a}\cdot {n}^{{1/2}}",
    ]


def multiples_of_pi(rng: Random) -> Spelled:
    value = Fraction(rng.choice([rng.randint(1, 30), 10000, 2005, 1200]), rng.randint(1, 6))
    n, d = value.numerator, value.denominator
    factors = {"" if n == 1 else _grouped(n, s) for s in ("", ",", "{,}", r"\,")}
    tops = [f + pi for f in factors for pi in (r"\pi", "π", "pi")] + [f"{n}*pi", f"{n} pi"]
    if d == 1:
        return value, tops
    return value, [
        *(f"{top}/{d}" for top in tops),
        *(rf"\frac{{{top}}}{{{d}}}" for top in tops),
        *(rf"\frac{{{n}}}{{{d}}}\pi", f"({n}/{d})*pi"),
    ]


_LESS = {"(": "<", ")": "<", "[": r"\leq", "]": r"\leq"}
_MORE = {"(": ">", ")": ">", "[": r"\geq", "]": r"\geq"}
_TYPED = {"(": "<", ")": "<", "[": "<=", "]": "<="}


def intervals(rng: Random) -> Spelled:
    a = rng.randint(-9, 9)
    b = rng.randint(a + 1, 12)
    low, high, x = rng.choice("(["), rng.choice(")]"), rng.choice("xtmk")
    left, right = f"{a}{_LESS[low]} {x}", f"{x}{_LESS[high]} {b}"
    match rng.choice(["both", "above", "below"]):
        case "both":
            inside = f"{low}{a},{b}{high}"
            return (low, a, b, high), [
                *(inside, f"{low}{a}, {b}{high}", rf"\left{low}{a},{b}\right{high}"),
                *(rf"{x}\in{inside}", f"{x} ∈ {inside}", rf"{left}{_LESS[high]} {b}"),
                *(f"{a} {_TYPED[low]} {x} {_TYPED[high]} {b}", f"{left} and {right}"),
                *(rf"{b}{_MORE[high]} {x}{_MORE[low]} {a}", f"{low}{2 * a}/2,{b}.0{high}"),
                rf"\{{{x}\mid {left}{_LESS[high]} {b}\}}",
            ]
        case "above":
            return (low, a, None, ")"), [
                *(rf"{low}{a},{end})" for end in (r"\infty", r"+\infty", " inf", " oo", "∞")),
                *(left, rf"{x}{_MORE[low]} {a}", rf"{x}\in{low}{a},\infty)"),
                *(rf"2{x}{_MORE[low]} {2 * a}", rf"-{x}{_LESS[low]} {-a}"),
            ]
        case _:
            return ("(", None, b, high), [
                *(rf"({end},{b}{high}" for end in (r"-\infty", "-inf", "-oo", "-∞")),
                *(right, f"{x} {_TYPED[high]} {b}", rf"{b}{_MORE[high]} {x}"),
                *(rf"3{x}{_LESS[high]} {3 * b}", rf"{x}\in(-\infty,{b}{high}"),
            ]


_UNITS = {
    "foot": [r"\text{ feet}", r"\text{ ft}", " feet", r"\,\mathrm{ft}", " ft"],
    "inch": [r"\text{ inches}", " inches", r"\text{ in.}"],
    "minute": [r"\text{ minutes}", r"\text{ min}", " min", " minutes"],
    "hour": [r"\text{ hours}", r"\text{ hrs}", " hours", r"\text{ h}"],
    "cent": [r"\text{ cents}", " cents", "¢"],
    "dollar": [r"\text{ dollars}", " dollars", " USD"],
    "percent": [r"\%", "%", r"\text{ percent}", " percent"],
    "degree": [r"^\circ", "°", r"^{\circ}", r"\text{ degrees}", r"\degree"],
    "degree Celsius": [r"^\circ\text{C}", "°C", r"^{\circ}\mathrm{C}"],
    "centimeter": [r"\text{ cm}", " cm", r"\,\mathrm{cm}", r"\text{ centimeters}"],
    "square foot": [r"\text{ square feet}", r"\text{ ft}^2", r"\text{ sq. ft}", " square feet"],
    "apple": [r"\text{ apples}", " apples"],
    "orange": [r"\text{ oranges}", " oranges"],
}


def quantities(rng: Random) -> Spelled:
    n, unit = rng.choice([3, 5, 30, rng.randint(1, 99)]), rng.choice(list(_UNITS))
    spellings = [f"{n}{spelling}" for spelling in _UNITS[unit]]
    return (n, unit), spellings + ([rf"\${n}"] if unit == "dollar" else [])


def named(rng: Random) -> Spelled:
    n = rng.randint(-9, 99)
    names = ["x=", "x = ", "AB=", "x_1=", "P(A)=", r"\angle A=", "f(2)=", r"\text{Area}=", "S_n="]
    names += ["Area = ", "|AB|=", "a_{10}=", r"x\approx", r"\approx ", "2+3=", r"\theta=", "E[X]="]
    return n, [str(n), *(f"{name}{n}" for name in names)]


def polynomials(rng: Random) -> Spelled:
    a, b = rng.randint(1, 6), rng.randint(1, 6)
    s, p = a + b, a * b
    return tuple(sorted((a, b))), [
        *(f"(x+{a})(x+{b})", f"(x+{b})*(x+{a})", f"x^2+{s}x+{p}", rf"x^{{2}}+{s}x+{p}"),
        *(f"x**2 + {s}*x + {p}", f"x² + {s}x + {p}", f"x*(x+{s})+{p}", f"{p}+{s}x+x^2"),
    ]


def points(rng: Random) -> Spelled:
    a, b = rng.choice([rng.randint(-9, 9), 1, 100]), rng.choice([rng.randint(-9, 9), 200, 300])
    return (a, b), [
        *(f"({a},{b})", f"({a}, {b})", rf"\left({a},{b}\right)", f"({a}.0,{b})", f"({a};{b})"),
        *(f"(x,y)=({a},{b})", f"（{a}，{b}）", rf"({2 * a}/2, {b})"),  # noqa: RUF001
    ]


_SINES = {0: 0, 30: 1, 45: 2, 60: 3, 90: 4, 120: 3, 135: 2, 150: 1, 180: 0}
_ROOT_OVER_TWO = [["0"], ["1/2", "½"], [r"\frac{\sqrt2}{2}"], [r"\frac{\sqrt3}{2}"], ["1"]]


def sines(rng: Random) -> Spelled:
    degrees, function = rng.choice(list(_SINES)), rng.choice(["sin", "cos"])
    angle = degrees if function == "sin" else 90 - degrees
    square = _SINES[abs(angle)] * (1 if angle >= 0 else -1)  # 4 sin²
    sign = "-" if square < 0 else ""
    return square, [
        *(rf"\{function} {degrees}^\circ", rf"\{function}({degrees}^{{\circ}})"),
        *(rf"\{function}{degrees}°", f"{function}({degrees}°)"),
        *(sign + spelling for spelling in _ROOT_OVER_TWO[abs(square)]),
    ]


FORMS = (
    *(integers, scientific, fractions, words, roots, multiples_of_pi, intervals, quantities),
    *(named, polynomials, points, sines),
)
