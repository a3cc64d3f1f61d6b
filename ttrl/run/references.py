"""Reads the reference answers of a run's questions, which say whether a label is right."""

from __future__ import annotations

import json
from contextlib import suppress

from ttrl.data.questions import load_references, reference_of
from ttrl.data.rows import BadRow, Rejection, Row, read_rows
from ttrl.report.run_record import RunRecord
from ttrl.settings.data import NOTHING
from ttrl.system.paths import step_file
from ttrl.types import UserError


def references(run: RunRecord) -> dict[str, str]:
    """Return the reference answers by question; empty where there are none.

    Those of a stream are in the rows that it has accepted, whatever the input has become, and
    however often the run was interrupted; a checker's, to questions that the policy has posed, are
    beside the proposals.

    Raises:
        UserError: if the questions cannot be read, or what a stream has accepted is not ours.
    """
    data = run.settings.data
    if data.source == "stream":
        return _of_stream(run)
    known = {} if data.train == NOTHING else load_references(data.train, data)
    return known | _of_posed(run) if data.source == "self_posed" else known


def _of_posed(run: RunRecord) -> dict[str, str]:
    found: dict[str, str] = {}
    for step in run.steps:
        path = step_file(run.path / "rollouts", int(step["step"]), "posed.jsonl")
        if not path.exists():
            continue
        try:
            for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
                said = json.loads(line)["completions"]
                found |= {x["asked_as"]: str(x["answer"]) for x in said if "answer" in x}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: expected proposals as a run writes them, got {type(error).__name__}: "
                f"{error}; without this file the run is shown without the answers in it"
            ) from error
    return found


def _of_stream(run: RunRecord) -> dict[str, str]:
    inbox, data, found = run.path / "stream" / "questions.jsonl", run.settings.data, {}
    for line in read_rows(str(inbox), data) if inbox.exists() else ():
        if isinstance(line, Rejection):  # half a line, which is being written
            continue
        said = line.value
        if not isinstance(said, dict) or "row" not in said or not isinstance(said.get("id"), str):
            raise UserError(f"{inbox}, {line.place}: expected an object with an id and a row")
        with suppress(BadRow):
            answer = reference_of(Row(line.place, said["row"]), data)
            if answer is not None:
                found[said["id"]] = answer
    return found
