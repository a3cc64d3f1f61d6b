"""The section [agents]: what agents read in later turns, and what their turns are worth."""

from __future__ import annotations

import string
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from ttrl.settings.section import Section

Voters = Literal["all", "first", "last"]
"""Whose answers elect the label, of those in several turns."""

VERIFIER = "verifier"
"""Role of who reads a solution and is asked for none."""

QUESTION, ANSWERS = "question", "answers"
"""What every template may show: the question's text, and all answers that the agent sees."""
PLACES = {
    "debate": {QUESTION, ANSWERS},
    "mixture": {QUESTION, ANSWERS},
    "verify": {QUESTION, ANSWERS, "generator", VERIFIER},
    "judge": {QUESTION, ANSWERS, "generator", VERIFIER},
    "refine": {QUESTION, ANSWERS, "generator", VERIFIER},
    "act": {QUESTION, ANSWERS, "generator", "agent"},
    "conclude": {QUESTION, ANSWERS, "generator", "agent"},
    "shown_as": {"number", "answer"},
}
"""What the templates of the settings may show."""


class AgentSettings(Section):
    """What agents read, with ``rollout.workflow`` = debate, mixture or chain, and what they earn.

    Templates are messages of the user, with {places} that are filled in; {{ is a brace.
    """

    voters: Voters = "all"
    """Whose answers elect the label: all, those of the first turn, or those of the last one of each
    trajectory. All are judged against it, paid and trained, whoever votes. Also of your own
    workflow in turns."""
    shaping: Literal["none", "margin", "quality"] = "none"
    """How the reward R of an answer depends on Q, the mean reward of the earlier turns of its
    trajectory. none: R. margin: R + a(R - Q). quality: R + a(Q R - (1 - Q)(1 - R))."""
    shaping_coef: Annotated[float, Field(gt=0, le=10)] = 0.5
    """shaping: the factor a."""
    outcome_coef: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Each answer also earns this times what the last turn of its trajectory earns (the same
    agent's, in a debate)."""
    chain: Literal["roles", "role_free", "verdict"] = "roles"
    """chain: what those after the generator do. roles: verifiers criticise, a refiner answers.
    role_free: each says by itself what it does, and does it, by ``act``; the last answers, by
    ``conclude``. verdict: verifiers box 1 or 0 on the generator's solution, by ``judge``, have no
    vote, and earn 1 if that is whether the solution agrees with the label; a refiner answers."""
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
    judge: str = (
        "{question}\n\nThis solution was given to the problem above:\n\n{generator}\n\n"
        "Check it step by step. Do not solve the problem anew. End with your verdict on its final "
        "answer: \\boxed{{1}} if that is right, \\boxed{{0}} if it is wrong."
    )
    """chain = "verdict": what a verifier reads. ``data.suffix`` is not appended, so this says in
    which form the verdict is to be; it is read as answers are, and must be 1 or 0."""
    refine: str = (
        "{question}\n\nThis solution was given to the problem above:\n\n{generator}\n\n"
        "This was said of it:\n\n{verifier}\n\nWrite a refined solution."
    )
    """chain: what the refiner reads."""
    act: str = (
        "{question}\n\nSeveral of us work on the problem above, one after the other. This is what "
        "was written so far:\n\n{generator}\n\n{agent}\n\nContinue with what helps most now. Name "
        "it in your first line, as one word: SOLVE (a solution of your own), CRITICISE (what is "
        "wrong above, and why), REFLECT (what was left out or taken for granted), or COMBINE (the "
        "best of the above as one solution). Then do just that."
    )
    """chain = "role_free": what agents between the first and the last read; {agent} shows what
    those after the first have said, in order."""
    conclude: str = (
        "{question}\n\nThis is what was written on the problem above, by several of us, one after "
        "the other:\n\n{generator}\n\n{agent}\n\nYou are the last. Name in your first line what "
        "you do (SOLVE, CRITICISE, REFLECT or COMBINE), and end with the answer."
    )
    """chain = "role_free": what the last agent reads."""

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
