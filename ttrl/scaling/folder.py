"""The folder of a measurement: what ``ttrl scale`` has found is kept in it, and not made again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ttrl.evaluation.evaluation import Evaluation
from ttrl.evaluation.measuring import answers_to
from ttrl.report.results import is_count, is_number
from ttrl.report.rollouts import RecordedGroup, json_lines, read_groups, recorded_line
from ttrl.report.run_record import is_run
from ttrl.run.claim import claim
from ttrl.run.disk import disk
from ttrl.run.identity import other_work
from ttrl.run.run_folder import put
from ttrl.scaling.points import Point
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError

SHOWN = 3
"""Settings in a message."""
Read = TypeVar("Read")
ADVICE = "Name another folder, or give these settings again"


@dataclass(frozen=True, slots=True)
class Kept:
    """What a folder has of a method.

    Example: ``Kept((point,), whole=False)`` is a search that has more of its points to find.
    """

    points: tuple[Point, ...] = ()
    whole: bool = False
    """Whether these are all points."""


class ScaleFolder:
    """Keeps answers, scores and points as soon as they are there; the same command goes on.

    It has ``recipe.toml``, the settings; ``questions.json``, a digest of the questions;
    ``answers.jsonl``, a file of ``--save-samples``; ``scores.jsonl``, by question;
    ``points/METHOD.json``; and ``training/``, the run.
    """

    def __init__(self, path: Path, evaluation: Evaluation) -> None:
        """Name the folder, and whose answers it is for; `open` makes it."""
        self.path, self._evaluation = path, evaluation
        self._questions = path / "questions.json"
        self._recipe, self._answers = path / "recipe.toml", path / "answers.jsonl"
        self._scores, self._points = path / "scores.jsonl", path / "points"
        self.training = path / "training"
        """The folder of the training run."""

    @contextmanager
    def open(self) -> Iterator[None]:
        """Make the folder, or go on in it; no other process can until the context ends.

        Raises:
            UserError: if it has something else, or what was measured with other settings.
        """
        if is_run(self.path):
            raise UserError(
                f"--run-dir {self.path} is the folder of a run: name one for the measurement, in "
                "which its run will be"
            )
        is_free = not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir()))
        if not self._recipe.exists() and not is_free:
            raise UserError(
                f"--run-dir {self.path} is there, and no folder of `ttrl scale`: it has no "
                "recipe.toml. Name a new one"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--run-dir {self.path}: cannot make the folder ({error.strerror}); name another "
                "folder"
            ) from error
        with self._recipe.open("ab") as recipe:
            if not claim(recipe):
                raise UserError(
                    f"--run-dir {self.path}: another process is measuring in it; wait for its end"
                )
            # Only now: a process that is killed leaves an empty folder, or one with its recipe.
            self._points.mkdir(exist_ok=True)
            for lines in (self._answers, self._scores):
                _cut_off(lines)
            if self.has_something:
                self._refuse_other_settings()
                self._refuse_other_questions()
            else:
                put(self._questions, json_lines([self._digest()]))
                recipe.truncate(0)
                disk.append(self._recipe, self._evaluation.settings.to_toml().encode())
            yield

    @property
    def has_something(self) -> bool:
        """Whether anything has been measured yet."""
        kept = (self._answers, self._scores, self.training, *self._points.glob("*.json"))
        return any(path.exists() for path in kept)

    def _refuse_other_settings(self) -> None:
        try:
            then = load_settings(str(self._recipe))
        except UserError as error:
            raise UserError(f"{self._recipe}: {error}") from error
        if differ := other_work(then, self._evaluation.settings):
            raise UserError(
                f"--run-dir {self.path} was begun with other settings; nothing was changed: "
                f"{'; '.join(differ[:SHOWN])}. {ADVICE}"
            )

    def _digest(self) -> dict[str, str]:
        """Compute what tells the questions and their answers from others."""
        asked = self._evaluation.asked
        said = [[q.id, q.prompt, asked.key.answers.get(q.id)] for q in asked.questions]
        return {"sha256": hashlib.sha256(json.dumps(said).encode()).hexdigest()}

    def _refuse_other_questions(self) -> None:
        if self._read(self._questions, dict) != self._digest():
            raise UserError(
                f"--run-dir {self.path} was begun with other questions, or other answers to them, "
                f"in {self._evaluation.settings.data.train}; nothing was changed. Name another "
                "folder, or put the data back"
            )

    def answers(self, sample: Callable[..., object]) -> tuple[list[RecordedGroup], float]:
        """Return the answers to all questions, and the seconds that they took.

        Args:
            sample: function of an evaluation of those that are not answered yet, and of what is
                called with each group of answers.

        Raises:
            UserError: if answers that are there are to other questions.
        """
        begun, evaluation = time.perf_counter(), self._evaluation

        def keep(group: Any) -> None:
            nonlocal begun
            took, begun = time.perf_counter() - begun, time.perf_counter()
            line = recorded_line(replace(RecordedGroup.of(group), data=evaluation.name))
            disk.append(self._answers, json_lines([{**line, "seconds": took}]))

        there = {g.question for g in self._answered()}
        left = tuple(q for q in evaluation.answerable if q.id not in there)
        if left:
            sample(replace(evaluation, asked=replace(evaluation.asked, questions=left)), keep)
        seconds = sum(line["seconds"] for line in self._lines(self._answers))
        return self._answered(), seconds

    def _answered(self) -> list[RecordedGroup]:
        if not self._answers.exists():
            return []
        groups = answers_to(read_groups(self._answers), self._evaluation, f"--run-dir {self.path}")
        wanted = self._evaluation.settings.evaluation.samples
        for group in groups:
            if len(group.answers) != wanted:
                raise UserError(
                    f"{self._answers}: question {group.question!r} has {len(group.answers)} "
                    f"answers, and evaluation.samples = {wanted}: take its line out, and it is "
                    "asked again"
                )
        return groups

    def scores(
        self,
        model: str,
        groups: Sequence[RecordedGroup],
        score: Callable[[RecordedGroup], Sequence[float]],
    ) -> Iterator[tuple[list[float], float]]:
        """Yield the scores of each group's answers, and the seconds that they took.

        Args:
            model: the name of the reward model.
            groups: the answers.
            score: scores those of a group that are not scored yet.
        """
        there = {line["question"]: line for line in self._lines(self._scores)}
        for group in groups:
            line = there.get(group.question)
            if line is None:
                begun = time.perf_counter()
                found = list(score(group))
                took = time.perf_counter() - begun
                line = {"question": group.question, "model": model}
                line |= {"scores": found, "seconds": took}
                disk.append(self._scores, json_lines([line]))
            elif not _is_scores(line.get("scores"), len(group.answers)):
                raise UserError(
                    f"{self._scores}: expected {len(group.answers)} numbers for question "
                    f"{group.question!r}: take its line out, and its answers are scored again"
                )
            yield line["scores"], line["seconds"]

    def kept(self, method: str, about: Mapping[str, Any]) -> Kept:
        """Return what is there of a method.

        Raises:
            UserError: if it was measured in another way than ``about`` says.
        """
        path = self._points / f"{method}.json"
        if not path.exists():
            return Kept()

        def read(found: Any) -> tuple[Any, Kept]:
            questions = len(self._evaluation.answerable)
            points = tuple(_point(p, method, questions) for p in found["points"])
            if type(found["whole"]) is not bool or (found["whole"] and not points):
                raise ValueError("expected whole, true or false, and points if it is true")
            return found["about"], Kept(points, found["whole"])

        then, kept = self._read(path, read)
        if then != about:
            raise UserError(
                f"--run-dir {self.path} has {method} of {then}, and not of {dict(about)}; nothing "
                f"was changed. {ADVICE}"
            )
        return kept

    def keep(self, method: str, about: Mapping[str, Any], kept: Kept) -> None:
        """Write down what a method has found so far: whole, or still what it was."""
        found = {"about": about, "whole": kept.whole, "points": list(map(asdict, kept.points))}
        put(self._points / f"{method}.json", json_lines([found]))

    def refuse_other_scores(self, model: str | None) -> None:
        """Raise a UserError for scores that are there of another reward model."""
        others = {line["model"] for line in self._lines(self._scores, "model")} - {model}
        if others and model is not None:
            raise UserError(
                f"--run-dir {self.path} has scores of the reward model {min(others)!r}, and not of "
                f"{model!r}; nothing was changed. {ADVICE}"
            )

    def _read(self, path: Path, read: Callable[[Any], Read]) -> Read:
        """Read a file of JSON that this wrote."""
        try:
            return read(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path} is not one of ours ({type(error).__name__}: {error}): put it back, or "
                "name another --run-dir"
            ) from error

    def _lines(self, path: Path, *texts: str) -> list[dict[str, Any]]:
        """Read lines that this wrote, with a question, seconds and these ``texts``."""
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        try:
            found = [json.loads(line) for line in lines]
            for line in found:
                named = all(isinstance(line[name], str) for name in ("question", *texts))
                if not named or not is_number(line["seconds"]):
                    raise ValueError(f"expected {', '.join(('question', *texts))}, and seconds")
            return found
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path}: a line is not one of ours ({type(error).__name__}: {error}): put the "
                "file back, or name another --run-dir"
            ) from error


def _point(saved: Any, method: str, questions: int) -> Point:
    """Read a point; a ValueError says why it is none of a method that this wrote."""
    numbers = (saved["sampled"], saved["read"], saved["trained"], saved["seconds"])
    if not _is_scores(saved["scores"], questions) or not all(map(is_number, numbers)):
        raise ValueError(f"expected {questions} scores in each point, and numbers beside them")
    # Of conversations, a point has their shape, too: "debate 2x2".
    if str(saved["method"]).partition(" ")[0] != method or not is_count(saved["n"]):
        raise ValueError(f"expected points of {method}, each with n")
    return Point(**{**saved, "scores": tuple(saved["scores"])})


def _is_scores(found: object, count: int) -> bool:
    return isinstance(found, list) and len(found) == count and all(map(is_number, found))


def _cut_off(path: Path) -> None:
    """Remove the last line of a file if it is half written: the process was killed."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
