"""Which answers are the same by value: golden cases, properties, and what is never asked."""

from __future__ import annotations

import os
import random
import signal
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import pytest
from graded_values import assert_classes_are_values
from python_process import run_python

from ttrl.answers import Grader, canonical, default_grader, equivalent
from ttrl.answers.notation import translate
from ttrl.answers.symbolic import analyse
from ttrl.rewards import majority_vote
from ttrl.settings import AnswerSettings
from ttrl.types import UserError

SAME = [
    # Numbers, exact whatever the way to them
    ("2", r"\sqrt{4}", r"\frac{\sqrt{16}}{2}", r"2\sin(\frac{\pi}{6})+1", r"\log_2 4", "8^{1/3}",
     r"\{2\}", r"\{\sqrt4, 2\}"),
    ("-2", r"\sqrt[3]{-8}", r"-\sqrt4", "2-4", "(-2)^1", r"-\left(\sqrt2\right)^2"),
    ("120", "5!", r"\binom{10}{3}", r"2\cdot 60", r"2 \times 60", "1.2*100"),
    ("42/625000", ".0000672", r"6.72\times10^{-5}", r"6.72 \cdot 10^{-5}"),
    ("5/2", r"\frac{5}{2}", "2.5", r"\frac{1}{2}+2", r"\frac{\frac52}{1}", r"5/2", r"2\frac12"),
    (r"\frac{\sqrt3}{3}", r"\frac{1}{\sqrt{3}}", r"\sqrt{3}/3", r"\sqrt{\frac13}", "3^{-1/2}"),
    (r"\sqrt{66}", r"\sqrt2\sqrt{33}", r"\sqrt{2\cdot33}", "66^{0.5}"),
    (r"11\sqrt5+11", r"11 \sqrt{5} + 11", r"11(1+\sqrt5)", r"(\sqrt{5}+1)(11)"),
    (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2"),
    (r"\frac{20000}{\pi}", r"20000/\pi", r"\frac{2\cdot10^4}{\pi}"),
    ("6-5i", "-5i+6", "(3-2i)(4+i)-8", r"\frac{(6-5i)^2}{6-5i}"),
    (r"\frac{11+9a}{20}", r"\frac{9a+11}{20}", r"\frac{11}{20}+\frac{9a}{20}", "0.55+0.45a"),
    ("e^2", r"\exp(2)", r"e\cdot e"),
    # Expressions
    ("x^2+2x+1", "(x+1)^2", "(1+x)(x+1)", "x(x+2)+1"),
    ("(a+5)(b+2)", "(b+2)(a+5)", "ab+2a+5b+10"),
    (r"\cot x", r"\frac{1}{\tan x}", r"\frac{\cos x}{\sin x}", r"\cot(x)"),
    (r"\sin 2x", r"2\sin x\cos x", r"\sin(2x)"),
    (r"|p-q|", r"|q-p|", r"\left| p - q \right|"),
    (r"\arctan x", r"\tan^{-1} x", r"\tan^{-1}(x)"),
    ("2^{n+1}", r"2\cdot2^n"),
    ("x_1+x_2", "x_2+x_{1}"),
    # Structure
    (r"1\pm\sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}", r"x = 1 \pm \sqrt{19}"),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2, 1+\sqrt5, 1-\sqrt5\}", r"-2, 1-\sqrt5, 1+\sqrt5"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)", r"(\sqrt9, 0.5\pi)"),
    (r"(-\sqrt3, \sqrt3)", r"(-\sqrt{3},\sqrt{3})", r"(-3^{1/2}, 3^{1/2})"),
    (r"(0,\sqrt{81}) \cup (9,36)", r"(9,36)\cup(0,9)"),
    (r"\begin{pmatrix} \sqrt4 \\ 1 \end{pmatrix}", r"\begin{bmatrix} 2 \\ 1 \end{bmatrix}"),
    # Equations up to a factor, inequalities up to a positive one
    ("y=2x+3", "2x-y=-3", "y - 2x = 3", "2y=4x+6", "2x+3=y"),
    ("5x-7y+11z+4=0", "-5x+7y-11z-4=0", "5x+11z+4=7y"),
    ("x^2>3y", "3y<x^2", r"2x^2-6y>0"),
    (r"x\leq3", r"3\geq x", r"2x\le6"),
    (r"-1<x\leq\sqrt4", r"2\geq x>-1"),
    ("x=5", "5", r"x=\sqrt{25}", "(5)", "((5.0))"),
    (r"\text{(A), (C)}", "C, A", r"\{A,C\}"),
    (r"\binom{n}{2}", r"\frac{n(n-1)}{2}", r"n(n-1)/2"),
    ("0.1x", r"\frac{x}{10}", r"\frac{1}{10}x"),
    (r"\frac{x^2-1}{x-1}", "x+1"),
    ("100!", r"99!\cdot100"),
    ("2i", r"\sqrt{-4}"),
]  # fmt: skip

DIFFERENT = [
    (r"\sqrt2", "1.4142135623731", "1.41421356237309504880168872420969807856967187537694"),
    ("1/3", "0.333", "0.3333333333333333333333333333333333333333", r"\frac{1}{\sqrt3}"),
    ("10^{40}", "10^{40}+1", "10^{39}", r"\sqrt{10^{80}}-1"),
    (r"10^{50}+\pi", r"10^{50}+\sqrt2", "10^{50}"),
    (r"1+e^{-200}", "1", r"\tanh(100)", r"\cos(10^{-30})"),
    ("x^2", "2x", "x", "|x|", "-x", "x^3"),
    (r"\sqrt{x^2}", "x"),
    ("|xy|", "xy", "-xy"),
    (r"\frac{|a|}{|b|}", r"\frac{a}{b}", r"\frac{-a}{b}"),
    (r"\sqrt{p^2q^2}", "pq", "-pq"),
    ("|m+n|", "m+n", "-m-n"),
    ("A+b", "a+b", "a+B", "A+B"),  # letters have a case
    ("x_1", "x_2", "x"),
    (r"\cot x", r"\cot y", r"\tan x", r"\cot"),
    (r"\log x", r"\ln x", r"\log_2 x"),
    ("2(3)", "5", "7"),  # a product, never a mixed number
    (r"52_8", "52", "42", "52_9"),
    ("y=2x+3", "y=2x-3", "y=3x+2", "2x+3", r"y\neq2x+3", "y<2x+3"),
    ("x>3", "x<3", r"x\geq3", "-x>3"),
    (r"1\pm\sqrt2", r"1+\sqrt2", r"(1+\sqrt2,1-\sqrt2)"),
    (r"(2,\sqrt9)", r"[2,3]", r"(3,2)", r"\{2,3\}"),
    (r"\begin{vmatrix}2&0\\0&1\end{vmatrix}", r"\begin{pmatrix}\sqrt4&0\\0&1\end{pmatrix}"),
    ("east", "seat", "teas", "eats"),
    ("no", "on"),
    (r"\frac{dy}{dx}=2x", "y=2x^2"),
    ("6-5i", "6+5i", "5-6i"),
    (r"1/2\sqrt3", r"\frac{1}{2\sqrt3}", r"\frac{\sqrt3}{2}"),  # either: so neither
    ("x^12", "x^{12}", "2x"),
    (r"2\frac{3}{2}", "3", "7/2"),
    ("1e5", "1e6", "5e"),
    ("5!!", "15", r"(5!)!"),
]  # fmt: skip


@pytest.mark.parametrize("answers", SAME, ids=lambda a: a[0])
def test_same(grader: Grader, answers: tuple[str, ...]) -> None:
    found = grader.classes(answers)
    assert len(set(found.name_of.values())) == 1, dict(found.name_of)
    assert not found.undecided


@pytest.mark.parametrize("answers", DIFFERENT, ids=lambda a: a[0])
def test_different(grader: Grader, answers: tuple[str, ...]) -> None:
    assert len(set(grader.classes(answers).name_of.values())) == len(answers)


def test_no_golden_case_joins_another(grader: Grader) -> None:
    """All at once, in any order: the classes are those of each case alone."""
    answers = [a for case in SAME for a in case]
    name_of = grader.classes(answers).name_of
    shuffled = random.Random(0).sample(answers, len(answers))
    assert grader.classes(shuffled).name_of == name_of
    names = [{name_of[a] for a in case} for case in SAME]
    assert [len(n) for n in names] == [1] * len(SAME)
    assert len(set.union(*names)) == len(SAME)


def test_a_class_is_named_by_its_smallest_form(grader: Grader) -> None:
    name_of = grader.classes([r"\frac{\sqrt{16}}{2}", r"\sqrt{4}", "7"]).name_of
    assert name_of[r"\frac{\sqrt{16}}{2}"] == name_of[r"\sqrt{4}"] == r"\sqrt4"
    assert name_of["7"] == "7"


def test_votes_are_counted_by_value(grader: Grader) -> None:
    vote = majority_vote(["3", "3", r"\sqrt{4}", "2", r"\frac{4}{2}", "six"], grader)
    assert vote.counts == (3, 2, 1)
    assert vote.clusters_G == (1, 1, 0, 0, 0, 2)
    assert vote.majority == "2"
    assert vote.undecided == 0


# ---------------------------------------------------------------------------------------------
# Random expressions of known value


def spelled(rng: random.Random, value: Fraction, depth: int) -> str:
    """A random expression with that value."""
    if depth == 0:
        return spelled_number(rng, value)
    part = Fraction(rng.randint(1, 9), rng.randint(1, 4))
    one, rest = (spelled(rng, v, depth - 1) for v in (part, value - part))
    times = spelled(rng, value / part, depth - 1)
    return rng.choice(
        [
            f"{one}+({rest})",
            f"\\left({rest}\\right) + {one}",
            f"({one})({times})",
            f"({times}) \\cdot ({one})",
            f"\\frac{{{spelled(rng, value * part, depth - 1)}}}{{{one}}}",
            f"-({spelled(rng, -value, depth - 1)})",
            f"({spelled(rng, part * value, depth - 1)}) \\div ({one})",
        ]
        + ([f"\\sqrt{{{spelled(rng, value * value, depth - 1)}}}"] if value >= 0 else [])
    )


def spelled_number(rng: random.Random, value: Fraction) -> str:
    top, bottom = value.numerator, value.denominator
    choices = [f"\\frac{{{top}}}{{{bottom}}}", f"({top}/{bottom})", f"\\dfrac{{{top}}}{{{bottom}}}"]
    if bottom == 1:
        choices += [str(top), f"{{{top}}}", f"{top}.0"]
    if 1000 % bottom == 0:
        choices.append(f"{float(value):.3f}" if abs(value) < 10**6 else str(top))
    return rng.choice(choices)


@pytest.mark.parametrize("seed", range(20))
def test_random_expressions_fall_into_the_classes_of_their_values(
    grader: Grader, seed: int
) -> None:
    rng = random.Random(seed)
    values = [Fraction(rng.randint(-30, 30), rng.choice([1, 1, 2, 5, 7])) for _ in range(15)]
    value_of = {}
    for value in values:
        for depth in (0, 1, 1, 2):
            value_of[spelled(rng, value, depth)] = value
    assert_classes_are_values(grader, value_of, rng)


@pytest.mark.parametrize("seed", range(5))
def test_random_polynomials_fall_into_the_classes_of_their_roots(grader: Grader, seed: int) -> None:
    """(x-a)(y-b) in any spelling; it determines a and b."""
    rng = random.Random(seed)
    value_of = {}
    for _ in range(12):
        a, b = rng.randint(1, 4), rng.randint(1, 4)
        spelling = rng.choice(
            [
                f"(x-{a})(y-{b})",
                f"xy-{b}x-{a}y+{a * b}",
                f"x(y-{b})-{a}(y-{b})",
                f"-({a}-x)(y-{b})",
                f"\\frac{{(y-{b})(2x-{2 * a})}}{{2}}",
                f"-\\left({b}-y\\right)\\cdot(x-{a})",
            ]
        )
        value_of[spelling] = (a, b)
    name_of = grader.classes(value_of).name_of
    for one, other in combinations(value_of, 2):
        assert (name_of[one] == name_of[other]) == (value_of[one] == value_of[other]), (one, other)


# ---------------------------------------------------------------------------------------------
# What is not asked


@pytest.mark.parametrize(
    "answers",
    [
        ["1/2", "0.5", r"\frac12", "7", "-3", r"50\%", r"90^\circ"],
        ["A", "(B)", r"\text{C}", "x"],
        ["east", "west", r"\text{no solution}", r"\text{Evelyn}"],
        ["(1,2)", r"\{1,2\}", "[0,1]", r"(-\infty, 0]", r"(0,1)\cup(2,3)", "1,-2"],
        [r"\begin{pmatrix}1\\2\end{pmatrix}", "52_8", "1e5", "5 apples", "?", "{" * 2000],
        [r"\sqrt{2}+1", r"\sqrt2 + 1", r"$\sqrt{2}+1$."],  # one form: nothing to compare
    ],
)
def test_settled_answers_start_nothing(answers: list[str]) -> None:
    with Grader() as grader:
        grader.classes(answers)
        assert not grader._workers._alive


def test_no_computer_algebra_in_our_process() -> None:
    code = (
        "import sys\n"
        "from ttrl.answers import equivalent\n"
        "assert equivalent(r'\\sqrt{4}', '2') and not equivalent(r'\\sqrt{5}', '2')\n"
        "print(sorted({'sympy', 'mpmath', 'math_verify', 'torch'} & set(sys.modules)))"
    )
    done = run_python("-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_without_the_symbolic_stage_spelling_decides() -> None:
    with Grader(AnswerSettings(symbolic=False)) as grader:
        assert not grader.equivalent(r"\sqrt4", "2")
        assert grader.equivalent("0.5", r"\frac12")
        assert not grader._workers._alive


def test_a_question_is_asked_once(grader: Grader, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    ask = grader._workers.ask
    monkeypatch.setattr(grader._workers, "ask", lambda qs: asked.extend(qs) or ask(qs))
    for _ in range(3):
        assert grader.equivalent(r"\sqrt{144}+\sqrt{7}", r"12+\sqrt{7}")
    assert len(asked) == 2


@pytest.mark.parametrize(
    "text",
    [
        *("", "east", "5 apples", "abc", "1e5", "x^12", r"\sqrt12", "1/2x", "1/2(x)", "5!!"),
        *("x^2^3", r"\sin x(y)", r"\sin x/2", r"2\frac12+x", r"2\frac{1}{2}x", "2 3", "x2", "(1"),
        *("1)", "1,2", "+", "2+", "()", "--2", "1+*2", r"\sum n", r"\operatorname{eye}(9)", "=="),
        *(r"\text{x}", "f'(x)", "x[1]", "52_8", r"\infty", "eval", "__import__", "π"),
        "(" * 200 + "x" + ")" * 200,
        "x+" * 200 + "x",
    ],
)  # fmt: skip
def test_what_does_not_pass(text: str) -> None:
    assert translate(text) is None


def test_nothing_that_passes_holds_a_number_or_a_name() -> None:
    expression = translate(r"\frac{3x^{2}}{\sqrt[3]{y}}-0.5\pi")
    assert expression is not None
    assert expression.atoms == ("3", "x", "2", "y", "0.5", r"\pi")
    bare = expression.latex.replace(r"\variable", "")
    assert bare == r"\frac{{a0}\cdot {a1}^{{a2}}}{\sqrt[{a0}]{{a3}}}-{a4}\cdot {a5}"


def test_an_answer_is_asked_for_its_expressions_alone() -> None:
    form = analyse(canonical(r"\left\{ (1,\sqrt2), x \in A, \text{east} \right\}"))
    assert [q.sides[0].atoms for q in form.questions()] == [("2",)]


# ---------------------------------------------------------------------------------------------
# Processes


def test_equivalent_is_that_of_the_shared_grader() -> None:
    assert default_grader() is default_grader()
    assert equivalent(r"\sqrt{4}", "2")
    assert majority_vote([r"\sqrt4", "2", "3"]).counts == (2, 1)


def test_a_killed_worker_changes_nothing() -> None:
    answers = [rf"\sqrt{{{n}}}+\frac{{\pi}}{{{n}}}" for n in range(2, 12)] + [r"\sqrt9", "3"]
    with Grader(AnswerSettings(deadline_s=60.0, workers=1)) as grader:
        grader.equivalent(r"\sqrt4", "2")
        (first,) = grader._workers._alive
        os.kill(first.process.pid, signal.SIGKILL)
        killed = grader.classes(answers)
        (second,) = grader._workers._alive
    assert second is not first
    assert not killed.undecided
    assert killed.name_of[r"\sqrt9"] == killed.name_of["3"] == "3"
    assert len(set(killed.name_of.values())) == 11


def test_a_closed_grader_still_knows_spellings() -> None:
    grader = Grader()
    grader.close()
    assert grader.equivalent("0.5", "1/2")
    with pytest.raises(RuntimeError, match="closed"):
        grader.equivalent(r"\sqrt4", "2")


def test_a_worker_that_cannot_start_is_reported_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "worker.py"
    script.write_text("import math_verify_is_not_here\n")
    monkeypatch.setattr("ttrl.answers.workers.__file__", str(script.with_name("workers.py")))
    with Grader() as grader:
        for _ in range(2):  # the second time without another try
            with pytest.raises(UserError, match=r"No module named 'math_verify_is_not_here'"):
                grader.equivalent(r"\sqrt4", "2")
            script.unlink(missing_ok=True)
