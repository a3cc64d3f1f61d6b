"""Templates of messages: their {places} are filled in with texts, of which some may be cut."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

from ttrl.data.free_prompts import Excerpt

Part = str | Excerpt


def fill(template: str, places: Mapping[str, Sequence[Part]]) -> list[Part]:
    """Return the parts of a message, in order: a template's own text, and what its places show.

    What is filled in is not a template: its braces stay braces.

    Args:
        template: a text with {places}; {{ is a brace.
        places: by name, what is shown there; nothing for a name that is not in the template.

    Raises:
        KeyError: for a place that is not there.
    """
    parts: list[Part] = []
    for text, place, _, _ in string.Formatter().parse(template):
        if text:
            parts.append(text)
        if place is not None:
            parts.extend(places[place])
    return parts
