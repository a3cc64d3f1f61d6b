"""The section [agents]: what agents read in later turns, and what their turns are worth."""

from __future__ import annotations

import string
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from ttrl.settings.section import Section

QUESTION, ANSWERS = "question", "answers"
"""What every template may show: the question's text, and all answers that the agent sees."""
PLACES = {
    "debate": {QUESTION, ANSWERS},
    "mixture": {QUESTION, ANSWERS},
    "verify": {QUESTION, ANSWERS, "generator", "verifier"},
    "refine": {QUESTION, ANSWERS, "generator", "verifier"},
    "shown_as": {"number", "answer"},
}
"""What the templates of the settings may show."""


class AgentSettings(Section):
    """What agents read, with ``rollout.workflow`` = debate, mixture or chain, and what they earn.

    Templates are messages of the user, with {places} that are filled in; {{ is a brace.
    """

    shaping: Literal["none", "margin", "quality"] = "none"
    """How the reward R of an answer depends on Q, the mean reward of the earlier turns of its
    trajectory. none: R. margin: R + a(R - Q). quality: R + a(Q R - (1 - Q)(1 - R))."""
    shaping_coef: Annotated[float, Field(gt=0, le=10)] = 0.5
    """shaping: the factor a."""
    outcome_coef: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Each answer also earns this times what the last turn of its trajectory earns (the same
    agent's, in a debate)."""
    others: Annotated[int, Field(ge=1, le=64)] = 5
    """debate: a debater reads its own last answer, and those of so many others at most, drawn anew
    each time."""
    shown_as: str = "Solution {number}:\n{answer}\n\n"
    """How each of {answers} is shown."""
    debate: str = (
        "{question}\n\nThese solutions were given to the problem above, your own among them:\n\n"
        "{answers}Weigh them critically, as further advice, and give an updated solution."
    )
    """debate: what a debater reads from the second round on; ``data.suffix`` is appended, here and
    wherever an answer is asked for."""
    mixture: str = (
        "{question}\n\nThese solutions were given to the problem above:\n\n{answers}"
        "Some may be wrong. Judge each of them critically, and write one refined solution."
    )
    """mixture: what the aggregator reads."""
    verify: str = (
        "{question}\n\nThis solution was given to the problem above:\n\n{generator}\n\n"
        "Criticise it: say which of its steps are wrong, and why, or that none is. Do not solve "
        "the problem."
    )
    """chain: what a verifier reads; {verifier} shows what earlier ones have said."""
    refine: str = (
        "{question}\n\nThis solution was given to the problem above:\n\n{generator}\n\n"
        "This was said of it:\n\n{verifier}\n\nWrite a refined solution."
    )
    """chain: what the refiner reads."""

    @field_validator(*PLACES)
    @classmethod
    def _has_known_places(cls, template: str, info: ValidationInfo) -> str:
        known = PLACES[str(info.field_name)]
        if info.field_name == "shown_as" and "answer" not in places_of(template):
            raise ValueError("shows no {answer}: an agent would see nothing of what was said")
        if unknown := sorted(set(places_of(template)) - known):
            raise ValueError(
                f"shows {{{unknown[0]}}}: expected {', '.join(f'{{{p}}}' for p in sorted(known))}; "
                "write {{ for a brace"
            )
        return template


def places_of(template: str) -> list[str]:
    """Return the names of a template's places, in order.

    Raises:
        ValueError: if it is not one.
    """
    found = []
    for _, place, form, conversion in string.Formatter().parse(template):
        if form or conversion:
            raise ValueError(f"{{{place}}} has a format; expected the bare name")
        if place is not None:
            found.append(place)
    return found
