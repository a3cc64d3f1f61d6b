"""Who acts in which turn, and who sees what: the plan of a conversation of agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ttrl.settings.agents import ANSWERS, QUESTION, places_of
from ttrl.types import UserError

Place = tuple[int, int]
"""A turn, and the agent's number in it, both from 0."""
Plan = Sequence[Sequence["Act"]]
"""Turns, each with its agents."""


@dataclass(frozen=True, slots=True)
class Act:
    """What an agent does in a turn.

    Example: ``Act("critic", "{question} {writer} What is wrong?", sees=[(0, 0)], answers=False)``
    reads the question and the first agent's first answer, whose role is "writer".
    """

    role: str
    """What it is there for; answers of one turn and role are compared with each other."""
    template: str | None = None
    """The message that it reads, with {question}, {answers} (all that it sees, each by
    ``agents.shown_as``, in random order) and {ROLE} (what it sees of this role, as it is; nothing
    if nobody of it has spoken). None: the question as a run's data puts it."""
    sees: Sequence[Place] = ()
    """The answers that it sees, all of earlier turns."""
    answers: bool = True
    """Whether ``data.suffix`` asks it for an answer in its form."""
    others: int | None = None
    """The most answers of other agents' that it is shown, drawn anew each time; None: all."""
    agent: str | None = None
    """Whose act it is, where ``rollout.policies`` gives each agent a policy: acts of one name are
    one agent's. None: "ROLE 0", "ROLE 1" and so on, by its place among those of its turn."""


def checked(plan: Plan, name: str) -> tuple[tuple[Act, ...], ...]:
    """Return a plan as tuples.

    Raises:
        UserError: if no conversation can be held by it.
    """
    if not _is_plan(plan):
        raise UserError(
            f"rollout.workflow = {name!r}: expected turns() to return a list of turns, each a list "
            f"of Act, got {str(plan)[:200]!r}"
        )
    turns = tuple(map(tuple, plan))
    if not turns or not all(turns):
        raise UserError(f"rollout.workflow = {name!r} has a turn without an agent, or no turn")
    for t, acts in enumerate(turns):
        for act in acts:
            _refuse_wrong(act, t, turns, f"rollout.workflow = {name!r}, turn {t}, {act.role!r}")
    return turns


def _is_plan(plan: object) -> bool:
    return isinstance(plan, list | tuple) and all(
        isinstance(acts, list | tuple) and all(isinstance(act, Act) for act in acts)
        for acts in plan
    )


def _refuse_wrong_fields(act: Act, where: str) -> None:
    """Raise a UserError for fields that are not of their types: a user's own class made them."""
    role, others = act.role, act.others
    if not isinstance(role, str) or not role or role in (QUESTION, ANSWERS) or set(role) & {*"{}"}:
        raise UserError(
            f"{where}: its role is what templates show as {{ROLE}}: expected a text without "
            f"braces, and neither {QUESTION!r} nor {ANSWERS!r}"
        )
    if act.agent is not None and (not isinstance(act.agent, str) or not act.agent):
        raise UserError(f"{where}: its agent is {act.agent!r}: expected a name, or None")
    if not isinstance(act.answers, bool):
        raise UserError(f"{where}: answers = {act.answers!r}: expected True or False")
    if act.template is not None and not isinstance(act.template, str):
        raise UserError(f"{where}: its template is {act.template!r}: expected a text, or None")
    if others is not None and (type(others) is not int or others < 0):
        raise UserError(f"{where}: others = {others!r}: expected a number from 0 on, or None")
    seen = act.sees
    if not isinstance(seen, list | tuple) or not all(
        isinstance(p, list | tuple) and [type(n) for n in p] == [int, int] for p in seen
    ):
        raise UserError(
            f"{where} sees {seen!r}: expected a list of (turn, agent), for example [(0, 0)]"
        )
    if len({*map(tuple, seen)}) < len(seen):
        raise UserError(f"{where} sees an answer twice: {seen!r}; expected each once")


def _refuse_wrong(act: Act, t: int, turns: tuple[tuple[Act, ...], ...], where: str) -> None:
    _refuse_wrong_fields(act, where)
    for turn, agent in act.sees:
        if not (0 <= turn < t and 0 <= agent < len(turns[turn])):
            raise UserError(
                f"{where} sees ({turn}, {agent}): expected turn and number of an agent before it"
            )
    if act.template is None:
        if act.sees:
            raise UserError(f"{where} sees answers and has no template that shows them")
        return
    try:
        places = set(places_of(act.template))
    except ValueError as error:
        raise UserError(f"{where}: the template cannot be read: {error}") from error
    roles = {other.role for turn in turns[: t + 1] for other in turn}
    known = {QUESTION, ANSWERS} | roles
    if unknown := sorted(places - known):
        raise UserError(
            f"{where}: the template shows {{{unknown[0]}}}: expected "
            f"{', '.join(f'{{{p}}}' for p in sorted(known))}; write {{{{ for a brace"
        )
    if act.sees and not places & (known - {QUESTION}):
        raise UserError(f"{where}: the template shows nothing of the answers that it sees")


def agents(plan: Plan) -> list[list[str]]:
    """Return the name of the agent at each place of a plan, see `Act.agent`."""
    named = []
    for acts in plan:
        before = [sum(other.role == act.role for other in acts[:i]) for i, act in enumerate(acts)]
        pairs = zip(acts, before, strict=True)
        named.append([f"{a.role} {n}" if a.agent is None else a.agent for a, n in pairs])
    return named


def calls(plan: Plan) -> int:
    """Count the answers of one trajectory."""
    return sum(map(len, plan))
