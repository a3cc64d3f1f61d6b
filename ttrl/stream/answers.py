"""Answers to the questions of a stream: one line each, once, whatever happens to the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttrl.stream.appended import AppendedFile, json_line
from ttrl.types import CompletionGroup, UserError, Vote


class Answers:
    """A file of answers, in the order of the questions' arrival.

    A run that goes on samples again what came after its checkpoint. Those questions have their
    answers already, and keep them.
    """

    def __init__(self, path: Path) -> None:
        """Name the file; `open` comes first."""
        self._file = AppendedFile(path, {"number": int})
        self.last = 0
        """The last question that was answered; all before it were, too."""

    def open(self) -> None:
        """Read what an earlier process has left.

        Raises:
            UserError: if some are missing.
        """
        for record in self._file.open():
            self.refuse_gap(record["number"])
            if record["number"] <= self.last:
                self._file.refuse(f"number {record['number']} is there twice")
            self.last = record["number"]

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Write down answers, with `number`, in order, of which there is none yet.

        Raises:
            UserError: if some before them are missing.
        """
        new = [record for record in records if record["number"] > self.last]
        if new:
            self.refuse_gap(new[0]["number"])
            self._file.append(b"".join(map(json_line, new)))
            self.last = new[-1]["number"]

    def find(self, number: int) -> dict[str, Any] | None:
        """Read the answer to a question; None: it has none yet."""
        return self._file.first("number", number) if 0 < number <= self.last else None

    def refuse_gap(self, number: int) -> None:
        """Raise a UserError if a question before this one has no answer."""
        if number > self.last + 1:
            raise UserError(
                f"{self._file.path} has answers to {self.last} questions, expected those to all "
                f"before question {number}: put back what is missing, or start again with another "
                "--run-dir"
            )


def answer_record(group: CompletionGroup, vote: Vote) -> dict[str, Any]:
    """Say what a model's votes answer: the majority, and what the first of them said.

    The ``response`` is the first completion of the majority, whole; the first voter's, if none of
    them answered.
    """
    votes_G = vote.voters_G or (True,) * len(group.completions)
    speaker = group.completions[vote.cast_G.index(0) if vote.counts else votes_G.index(True)]
    return {
        "answer": vote.majority,
        "share": vote.majority_ratio,
        "votes": vote.votes,
        "first": vote.answers_G[0],
        "response": speaker.text,
        "finish_reason": speaker.finish_reason.value,
        "prompt_tokens": len(group.question.prompt_ids),
        "response_tokens": len(speaker.token_ids),
        "tokens": sum(len(completion.token_ids) for completion in group.completions),
    }
