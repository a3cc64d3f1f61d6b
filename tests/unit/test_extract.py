r"""The answer is what the last complete \boxed{} holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttrl.answers import extract_answer, make_extractor
from ttrl.answers.extract import Extractor
from ttrl.types import UserError


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"The answer is $\boxed{5}$. I am sure.", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed {5}", "5"),
        ("\\boxed \n {5}", "5"),
        (r"\boxed{  5 }", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\text{(A)}}", r"\text{(A)}"),
        (r"\boxed{025}", "025"),
        ("\\boxed{1 +\n 2}", "1 +\n 2"),
    ],
)
def test_content_of_the_box_as_written(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


def test_last_box_counts() -> None:
    assert extract_answer(r"First \boxed{1}, no: \boxed{2}. Or was it 3?") == "2"


def test_escaped_braces_are_not_braces() -> None:
    assert extract_answer(r"\boxed{\{1, 2\}}") == r"\{1, 2\}"
    assert extract_answer(r"\boxed{\left\{ x \right.} and so }") == r"\left\{ x \right."
    assert extract_answer(r"\boxed{a \\{b}}") == r"a \\{b}"  # `\\` is a line break, `{` a brace


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{x = \boxed{5} \text{ cm}}", "5"),
        (r"\boxed{\fbox{1} or \boxed{2}}", "1, 2"),
        (r"\boxed{\boxed{\boxed{5}}}", "5"),
        (r"\boxed{\boxed{1}} then \boxed{2}", "2"),
    ],
)
def test_innermost_of_nested_boxes_counts(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{3}, \boxed{5}, and \boxed{7}", "3, 5, 7"),
        (r"$\boxed{3}$ and $\boxed{5}$.", "3, 5"),
        (r"\(\boxed{3}\) or \(\boxed{5}\)", "3, 5"),
        (r"\boxed{3} \quad \text{or} \quad \boxed{5}", "3, 5"),
        (r"\boxed{\boxed{3}; \boxed{5}}", "3, 5"),
        (r"$x = \boxed{1}$, $y = \boxed{2}$", "x=1, y=2"),
        (r"$x_1 = \boxed{1}$, and \boxed{2}", "1, 2"),
        (r"\boxed{\frac12} or \boxed{0.5}", "0.5"),
        (r"\boxed{3}, \boxed{}", None),
        (r"\boxed{3} \boxed{5}", "5"),
        (r"\boxed{3}\,\boxed{5}", "5"),
        (r"\boxed{3}, so the answer is \boxed{5}", "5"),
        (r"\boxed{3}. And \boxed{5}", "5"),
        (r"\boxed{3} for \boxed{5}", "5"),
    ],
)
def test_boxes_that_form_one_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed 5", "5"),
        (r"\boxed5$.", "5"),
        (r"\boxed 42.", "42"),
        (r"\boxed -1,000 is it", "-1,000"),
        (r"\boxed 3.5", "3.5"),
        (r"\boxed 1/2", "1/2"),
        (r"\boxed\frac{1}{2}", r"\frac{1}{2}"),
        (r"\boxed\text{B}", r"\text{B}"),
        (r"\boxed A", "A"),
        (r"\boxed{3}, \boxed 5", "3, 5"),
        (r"\boxed ", None),
        (r"\boxed in all", None),
        (r"\boxed a dog", None),
        (r"\boxed 5x", None),
        (r"\boxed 1.5x", None),
        (r"\boxed 5\pi", None),
        (r"\boxed x + 1", None),
        (r"\boxed2^3", None),
    ],
)
def test_a_box_without_braces(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{7} but wait, \boxed{\frac{1}{", "7"),
        (r"\boxed{7} but wait, \boxed{", "7"),
        (r"\boxed{7} but wait, \boxed", "7"),
        (r"\boxed{3 + \boxed{7}", "7"),
        (r"{ { \boxed{7}", "7"),
        (r"} } \boxed{7} }", "7"),
    ],
)
def test_truncated_box_leaves_the_word_to_a_complete_one(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The answer is 5.",
        "boxed{5}",
        r"\boxedup{5}",
        r"\boxed{5",
        r"\boxed{}",
        "\\boxed{ \n\t}",
        r"\boxed{\boxed{}}",
        r"\boxed{1} \boxed{}",  # the last one is complete, and says nothing
        r"\boxed{\,}",
        r"\boxed{\ }",
        r"\boxed{$$}",
        r"\boxed{\text{ }}",
        "\\boxed{\0}",
        "\\boxed{\u200b}",
    ],
)
def test_no_answer_is_none(text: str) -> None:
    assert extract_answer(text) is None


pieces = st.sampled_from(
    [r"\boxed{", r"\fbox {", r"\boxed", "{", "}", r"\{", r"\}", "\\", "\\\\", "5", " ", "\n", "\0"]
)


@given(st.lists(pieces, max_size=30).map("".join))
def test_never_empty_and_always_balanced(text: str) -> None:
    answer = extract_answer(text)
    if answer is not None:
        assert answer.strip()
        assert answer in text
        # The space is for an answer that ends in a backslash.
        assert extract_answer(f"\\boxed{{{answer} }}") == answer


# ---------------------------------------------------------------------------------------------
# Other styles


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"So \boxed{B}.", "B"),
        (r"\boxed{\text{(B)}}", "B"),
        (r"\boxed{\textbf{(E)}\ 5}", "E"),
        (r"\boxed{b}", "B"),
        (r"\boxed{(C) 5 m}, not (D)", "C"),
        (r"\boxed{7}", "7"),  # the model's answer all the same
        (r"\boxed{E - polygenic}", "E"),
        ("\\boxed{B \N{EN DASH} foo}", "B"),
        (r"\boxed{E-polygenic}", "E"),
        (r"\boxed{\text{Option B}}", "B"),
        (r"\boxed{Choice (C)}", "C"),
        (r"\boxed{The answer is D}", "D"),
        (r"\boxed{**B**}", "B"),
        (r"\boxed{\mathbf{(B)}}", "B"),
        (r"\boxed{\text{polygenic (E)}}", "E"),
        (r"\boxed{[C]}", "C"),
        (r"\boxed{A - C}", "A - C"),
        (r"\boxed{A, C}", "A, C"),
        (r"\boxed{A cat}", "A cat"),
        ("The answer is A.", "A"),
        ("Answer: A", "A"),
        ("the answer is $B$", "B"),
        (r"answer is \textbf{B}", "B"),
        ("So I think (C).", "C"),
        ("(A) is wrong, hence option D", "D"),
        ("**D**", "D"),
        ("It must be B. A cat knows that. So do I.", "B"),
        ("A. foo\nB. bar\nAnswer: A", "A"),
        ("I am sure: (B), and I am never wrong", "B"),
        ("Final answer\nB", "B"),
        ("The answer is I", "I"),
        ("We have A and I", None),
        ("U.S. Army, vitamin A", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_choice(text: str, letter: str | None) -> None:
    assert extract_answer(text, "choice") == letter


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{x+1} and 7", "x+1"),
        ("so 4, no, 5.", "5"),
        ("It is -1,000 dollars", "-1,000"),
        ("3/4 of it", "3/4"),
        ("a = .5", ".5"),
        ("7-3", "3"),
        ("x2", None),
        ("none", None),
        (r"\boxed{} 5", "5"),
    ],
)
def test_boxed_or_number(text: str, answer: str | None) -> None:
    assert extract_answer(text, "boxed_or_number") == answer


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[[str], Extractor]:
    path = tmp_path / "mine.py"
    path.write_text(
        "def last(text): return text[-1:]\n"
        "def nothing(text): return None\n"
        "def blank(text): return r'\\,'\n"
        "def number(text): return 5\n"
    )
    return lambda name: make_extractor(f"{path}:{name}")


def test_a_function_of_the_user(plugin: Callable[[str], Extractor]) -> None:
    assert plugin("last")("so 5") == "5"
    assert plugin("last")("") is None  # an empty text must not vote
    assert plugin("nothing")("5") is None
    assert plugin("blank")("5") is None
    with pytest.raises(UserError, match=r"returned 5, of type int: expected a str, or None"):
        plugin("number")("5")


def test_an_unknown_style() -> None:
    with pytest.raises(UserError, match=r"'boxes' is unknown.*boxed, choice, boxed_or_number"):
        make_extractor("boxes")


@pytest.mark.parametrize("style", ["boxed", "choice", "boxed_or_number"])
@pytest.mark.parametrize(
    "piece",
    [
        *(" ", "answer ", "*", "(", "1", "1,", "A.", ",000", "-", "\\boxed{", "answer:\n", "[A"),
        *("\\boxed5, ", "\\boxed{5} and ", "\\boxed ", "\\boxed\\frac{1}{", "x=\\boxed{1}, "),
    ],
)
def test_a_megabyte_takes_time_in_proportion(style: str, piece: str) -> None:
    extract_answer(piece * (1_000_000 // len(piece)), style)  # quadratic: hours
