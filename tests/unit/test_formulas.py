"""Formulas of a model as MathML: right, bounded, and of harmless elements alone."""

from __future__ import annotations

import json
import time

import pytest
from report_runs import HOSTILE

from ttrl.report.page.formulas import ATTRIBUTES, LONGEST, TAGS, formulas_in, mathml


def test_a_fraction_is_a_tree_of_its_parts() -> None:
    above, below = ["mrow", {}, ["mn", {}, "1"]], ["mrow", {}, ["mi", {}, "\u03b1"]]
    expected = ["math", {"display": "inline"}, ["mrow", {}, ["mfrac", {}, above, below]]]
    assert mathml(r"\frac{1}{\alpha}") == expected


def test_formulas_are_found_by_their_delimiters_and_prices_are_none() -> None:
    text = r"It costs $5 and $6; $x$, $$y^2$$, \(z\) and \[w\], not $ v $."
    assert list(formulas_in([text])) == ["x", "y^2", "z", "w"]
    answers = [
        r"\frac{1}{2}",
        "12",
        None,
        "a_1",
        "$v$",
        "some words_1",
        r"\text{no roots}",
        r"\(w\)",
    ]
    assert list(formulas_in([], answers)) == ["v", "w", r"\frac{1}{2}", "a_1"]


@pytest.mark.parametrize("latex", [r"\bullet", r"\boxed{12}", r"\begin{pmatrix}1\\2\end{pmatrix}"])
def test_what_only_looks_like_a_macro_is_a_formula(latex: str) -> None:
    assert mathml(latex) is not None


@pytest.mark.parametrize(
    "latex",
    [
        r"\renewcommand{\a}{\a\a}\a",
        r"\let\a\b",
        r"\newcommand{\a}{\b\b}\a",
        r"\def\a{\a\a}\a",
        r"\DeclareMathOperator{\x}{y}",
        "x" * (LONGEST + 1),
        "x_",
        "{" * 400,
        "\ud800",
        "x\u202ey",
        r"\frac" * 90,
    ],
)
def test_what_cannot_be_read_is_none(latex: str) -> None:
    assert mathml(latex) is None


def test_of_hostile_text_only_harmless_elements_are_left() -> None:
    begun = time.process_time()
    trees = formulas_in(HOSTILE, HOSTILE)
    assert time.process_time() - begun < 5
    waiting = list(trees.values())
    assert len(waiting) > 4
    seen = 0
    while waiting:
        tag, attributes, *children = waiting.pop()
        assert tag in TAGS
        assert attributes.keys() <= ATTRIBUTES
        assert "javascript" not in json.dumps(attributes)
        waiting += [child for child in children if not isinstance(child, str)]
        seen += 1
    assert seen > 50
    assert mathml(r"\href{javascript:alert(1)}{x}") == mathml("{{x}}")
    assert not {"script", "maction", "semantics", "annotation-xml", "href"} & (TAGS | ATTRIBUTES)


def test_text_that_looks_like_a_tag_stays_text() -> None:
    assert '"<b>"' in json.dumps(mathml(r"\text{<b>}"))
