"""Wrong settings in one readable line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import takewhile
from typing import Any

import pydantic

SHOWN = 200
"""Characters of a wrong value in a message."""


def readable_errors(error: pydantic.ValidationError) -> str:
    """Say what is wrong with settings, by their names, in one line."""
    found: dict[str, list[str]] = {}
    for one in error.errors():
        what, _, why = _readable(one).partition(": ")
        found.setdefault(what, []).append(why)
    # What may be of several types has an error for each of them.
    return "; ".join(
        f"{what}: {', or '.join(whys)}" if whys[0] else what for what, whys in found.items()
    )


def _readable(error: Any) -> str:
    where = ".".join(takewhile(lambda part: "[" not in part, map(str, error["loc"])))
    message = error["msg"].removeprefix("Value error, ")
    message = message.replace("a valid tuple", 'a list, for example ["one", "other"]')
    if not where:
        return str(message)
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "extra_forbidden":
        return f"{where} is unknown"
    given = repr(error["input"])
    if len(given) > SHOWN:
        given = f"{given[:SHOWN]}..."
    return f"{where} = {given}: {message[0].lower()}{message[1:]}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Suggest the nearest known word; for a dotted key also by its last part, in all sections."""
    known, last = list(known), word.rpartition(".")[2]
    tails: dict[str, list[str]] = {}
    for key in known:
        tails.setdefault(key.rpartition(".")[2], []).append(key)
    near = tails.get(word) or difflib.get_close_matches(word, known, n=1)
    for tail in [] if near else difflib.get_close_matches(last, tails, n=1):
        near = tails[tail]
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
