"""docs/answers.md says what is true: every row of its tables is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ttrl
from ttrl.answers import Grader, canonical, extract_answer

PAGE = Path(ttrl.__file__).parents[1] / "docs" / "answers.md"
_CODE = re.compile(r"`([^`]+)`")


def table(heading: str) -> list[list[str]]:
    """The rows of the table with these column names, cells as written."""
    lines = iter(PAGE.read_text(encoding="utf-8").splitlines())
    assert heading in lines
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert rows
    return rows


def code(cell: str) -> list[str]:
    return _CODE.findall(cell)


@pytest.mark.parametrize("row", table("| what | the same | others |"), ids=lambda row: row[0])
def test_values(grader: Grader, row: list[str]) -> None:
    _, same, others = map(code, row)
    found = grader.classes(same)
    assert len(set(found.name_of.values())) == 1, dict(found.name_of)
    assert not found.undecided
    for other in others:
        name_of = grader.classes([*same, other]).name_of
        assert name_of[other] != name_of[same[0]], (other, canonical(other))
        assert not grader.equivalent(other, same[0])


@pytest.mark.parametrize("row", table("| group | classes |"), ids=lambda row: row[0])
def test_units(grader: Grader, row: list[str]) -> None:
    group = code(row[0])
    found = grader.classes(group).name_of
    assert len(set(found.values())) == int(row[1])
    assert grader.classes(reversed(group)).name_of == found


@pytest.mark.parametrize("row", table("| completion | answer |"), ids=lambda row: row[0])
def test_boxes(row: list[str]) -> None:
    (completion,), answer = map(code, row)
    assert extract_answer(completion) == (answer[0] if answer else None)


@pytest.mark.parametrize("row", table("| completion | choice |"), ids=lambda row: row[0])
def test_choices(row: list[str]) -> None:
    (completion,), (letter,) = map(code, row)
    assert extract_answer(completion, "choice") == letter
