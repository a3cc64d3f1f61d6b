"""The questions of a run over its steps: votes, labels, and the texts that fit into a page."""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ttrl.report.page.formulas import formulas_in
from ttrl.report.rollouts import RecordedAnswer, RecordedGroup
from ttrl.report.run_record import RunRecord
from ttrl.types import UserError

TEXTS = 12_000_000
"""Bytes of a page for the texts of answers, of all its runs together."""
HISTORIES = 4_000_000
"""The same for questions and their votes."""
STEP_TEXT = 24_000_000
"""Characters of a step's answers, before they are packed; what is longer is cut in its middle."""
LONGEST = 16_000
"""Characters of an answer, or a prompt, at most."""


class Judge(Protocol):
    """Says which answers are the same, as `ttrl.answers.Grader` does."""

    def classes(self, answers: Iterable[str]) -> Classes:
        """Sort answers into classes of equal ones."""
        ...

    def agree(self, answers: Sequence[str | None], reference: str) -> tuple[bool, ...]:
        """Say which answers are the same as a reference."""
        ...


class Classes(Protocol):
    """Classes of equal answers, as `ttrl.answers.grader.Classes`."""

    @property
    def name_of(self) -> Mapping[str, str]:
        """Answer -> name of its class."""
        ...


@dataclass(frozen=True, slots=True)
class Visit:
    """The vote on a question in a step.

    Example: ``Visit(3, "7", 0.5, 4, (("7", 2, True), ("8", 1, False)), abstained=1, wrong=False)``.
    """

    step: int
    label: str | None
    majority_ratio: float
    votes: int
    clusters: tuple[tuple[str, int, bool], ...]
    """Classes of answers, largest first: name, votes, whether it is the label's."""
    abstained: int = 0
    wrong: bool | None = None
    """Whether the label is not the reference answer; None: that is not known."""
    flipped: bool = False
    """Whether it is another one than at the last visit."""
    tied: bool = False
    """Whether another class had as many votes, or there is no label."""
    undecided: bool = False
    """Whether a vote was compared by its spelling only."""


@dataclass(frozen=True, slots=True)
class History:
    """What a page has of a run's questions."""

    questions: str
    """Packed: prompts, references, visits."""
    texts: Mapping[int, str]
    """Step -> its answers, packed."""
    steps: int
    """Steps that were sampled."""
    notes: tuple[str, ...]
    """What was left out."""


def history(
    run: RunRecord, references: Mapping[str, str], judge: Judge, share: float = 1.0
) -> History:
    """Read the answers of a run, each file once.

    Args:
        run: the run.
        references: right answers by question, where they are known.
        judge: says which answers are the same.
        share: of the page's room.
    """
    prompts: dict[str, str] = {}
    visits: dict[str, list[Visit]] = {}
    texts: dict[int, str] = {}
    room, full, notes = int(TEXTS * share), False, []
    sampled = run.sampled
    for step in spread(sampled):
        try:
            groups = run.groups(step)
        except UserError as error:  # one broken file is no reason to show nothing
            notes.append(str(error))
            continue
        for group in groups:
            prompts.setdefault(group.question, cut(group.prompt, LONGEST))
            if group.judged:
                visits.setdefault(group.question, []).append(visit(step, group, judge))
        if not full:
            packed = pack(answers_of(groups))
            full = len(packed) > room
            if not full:
                texts[step] = packed
                room -= len(packed)
    if len(texts) < len(sampled):
        notes.append(
            f"The texts of {len(texts)} of {len(sampled)} steps fit into this page, spread over "
            "the run; the others are in its folder, rollouts/."
        )
    for question, seen in visits.items():
        visits[question] = compared(seen, references.get(question), judge)
    questions, left_out = _packed_questions(prompts, visits, references, int(HISTORIES * share))
    notes += [left_out] if left_out else []
    return History(questions, texts, len(sampled), tuple(notes))


def visit(step: int, group: RecordedGroup, judge: Judge) -> Visit:
    """Count the votes of a group that was judged; what the run knew of them is not judged anew."""
    answers = [answer.answer for answer in group.answers if answer.votes]
    given = [answer for answer in answers if answer is not None]
    classes = judge.classes({*given, *([group.label] if group.label is not None else [])})
    counted = Counter(classes.name_of[answer] for answer in given)
    named = [(name, count) for name, count in counted.most_common() if name]
    won = None if group.label is None else classes.name_of[group.label]
    return Visit(
        step=step,
        label=group.label,
        majority_ratio=group.majority_ratio,
        votes=len(answers),
        clusters=tuple((name, count, name == won) for name, count in named),
        abstained=len(answers) - sum(count for _, count in named),
        tied=group.tied or group.label is None,
        undecided=group.undecided > 0,
    )


def compared(visits: Sequence[Visit], reference: str | None, judge: Judge) -> list[Visit]:
    """Return the visits in the order of their steps, with what is known of their labels."""
    found: list[Visit] = []
    for seen in sorted(visits, key=lambda seen: seen.step):
        wrong = None if reference is None else not judge.agree((seen.label,), reference)[0]
        flipped = bool(found) and not _same(found[-1].label, seen.label, judge)
        found.append(replace(seen, wrong=wrong, flipped=flipped))
    return found


def spread(steps: Sequence[int]) -> Iterator[int]:
    """Yield steps so that any number of the first ones lie evenly: last, first, middle, ..."""
    if not steps:
        return
    yield steps[-1]
    parts = [(0, len(steps) - 1)]
    if len(steps) > 1:
        yield steps[0]
    while parts:
        halves = []
        for first, last in parts:
            if last - first > 1:
                middle = (first + last) // 2
                yield steps[middle]
                halves += [(first, middle), (middle, last)]
        parts = halves


def answers_of(groups: Sequence[RecordedGroup]) -> dict[str, Any]:
    """Return a step's answers as JSON, with their formulas."""
    count = sum(len(group.answers) for group in groups) or 1
    longest = max(200, min(LONGEST, STEP_TEXT // count))
    answers = {
        g.question: [_line(answer, longest, answer is g.greedy) for answer in _all(g)]
        for g in groups
    }
    lines = [line for of_question in answers.values() for line in of_question]
    formulas = formulas_in([line[0] for line in lines], [line[1] for line in lines])
    return {"answers": answers, "formulas": formulas}


def pack(value: object) -> str:
    """Return JSON, compressed, in letters that mean nothing in HTML."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def cut(text: str, longest: int) -> str:
    """Leave out the middle of a text that is too long; answers stand at the end."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters are left out …]\n{text[-half:]}"


def _all(group: RecordedGroup) -> list[RecordedAnswer]:
    return [*group.answers, *([group.greedy] if group.greedy is not None else [])]


def _line(answer: RecordedAnswer, longest: int, greedy: bool) -> list[Any]:
    """Write an answer as questions.js reads it."""
    name = None if answer.answer is None else cut(answer.answer, longest)
    text, turn = cut(answer.text, longest), answer.turn
    if turn is not None:  # in brackets, as what is left out
        where = f"trajectory {turn.trajectory + 1}, turn {turn.index + 1}"
        known = "" if answer.votes else ", without a vote"
        if answer.verdict is not None:
            known = f", verdict: {'right' if answer.verdict else 'wrong'}"
        text = f"[{where}: {turn.role} {turn.agent + 1}{known}]\n{text}"
    return [text, name, answer.tokens, answer.truncated, answer.reward, greedy]


def _same(one: str | None, other: str | None, judge: Judge) -> bool:
    if one == other or one is None or other is None:
        return one == other
    return judge.agree((one,), other)[0]


def _packed_questions(
    prompts: Mapping[str, str],
    visits: Mapping[str, Sequence[Visit]],
    references: Mapping[str, str],
    room: int,
) -> tuple[str, str]:
    """Pack the questions: with fewer classes of answers, then fewer visits, until they fit."""
    longest = max((len(seen) for seen in visits.values()), default=0)
    tries: list[tuple[int, int]] = [(classes, longest) for classes in (12, 4, 1)]
    tries += [(1, longest >> halved) for halved in range(1, longest.bit_length())]
    left_out = ""
    for classes, newest in tries or [(0, 0)]:
        packed = pack(_questions(prompts, visits, references, classes, newest))
        if len(packed) <= room:
            break
        left_out = f"Of each question the {newest} newest visits are shown, where there are more; "
        left_out += f"of each vote {classes} classes of answers."
    return packed, left_out


def _questions(
    prompts: Mapping[str, str],
    visits: Mapping[str, Sequence[Visit]],
    references: Mapping[str, str],
    classes: int,
    newest: int,
) -> dict[str, Any]:
    questions = [
        {
            "id": name,
            "prompt": prompt,
            "reference": references.get(name),
            "visits": [_visit_line(v, classes) for v in visits.get(name, ())[-newest:]],
        }
        for name, prompt in prompts.items()
    ]
    named = [name for seen in visits.values() for v in seen for name, _, _ in v.clusters[:classes]]
    labels = [v.label for seen in visits.values() for v in seen]
    return {
        "questions": questions,
        "formulas": formulas_in(prompts.values(), [*references.values(), *named, *labels]),
    }


def _visit_line(seen: Visit, classes: int) -> list[Any]:
    """Write a visit as questions.js reads it."""
    shown = [[cut(name, 300), count, won] for name, count, won in seen.clusters[:classes]]
    flags = [seen.wrong, seen.flipped, seen.tied, seen.undecided]
    label = None if seen.label is None else cut(seen.label, 300)
    counts = [seen.votes, seen.abstained, round(seen.majority_ratio, 4)]
    return [seen.step, label, counts, flags, shown]
