"""Answers to the questions of a stream: one line each, once, whatever happens to the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttrl.stream.appended import AppendedFile, json_line
from ttrl.types import CompletionGroup, Vote


class Answers:
    """A file of answers, in the order of the questions' arrival.

    A run that goes on samples again what came after its checkpoint. Those questions have their
    answers already, and keep them.
    """

    def __init__(self, path: Path) -> None:
        """Name the file; `open` comes first."""
        self._file = AppendedFile(path)
        self.last = 0
        """The last question that was answered; all before it were, too."""

    def open(self) -> None:
        """Read what an earlier process has left."""
        for _, record in self._file.open():
            self.last = record["number"]

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Write down answers, with `number`, in order, of which there is none yet."""
        new = [record for record in records if record["number"] > self.last]
        if new:
            self._file.append(b"".join(map(json_line, new)))
            self.last = new[-1]["number"]


def answer_record(group: CompletionGroup, vote: Vote) -> dict[str, Any]:
    """Say what a model's votes answer: the majority, and what the first of them said."""
    return {
        "answer": vote.majority,
        "share": vote.majority_ratio,
        "votes": len(vote.answers_G),
        "first": vote.answers_G[0],
        "tokens": sum(len(completion.token_ids) for completion in group.completions),
    }
