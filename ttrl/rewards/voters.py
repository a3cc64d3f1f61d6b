"""Says which answers of several agents elect the label: ``agents.voters``, and no verdicts."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ttrl.settings.agents import Voters
from ttrl.types import Completion, UserError


def voters_of(
    completions: Sequence[Completion], voters: Voters, verdicts: Collection[int]
) -> tuple[bool, ...] | None:
    """Return who votes; None: all.

    Args:
        completions: the answers to one question, at least one of them no verdict.
        voters: which turns' answers vote. The last turn is that of an answer's own trajectory.
        verdicts: indices of those that are no answers to the question.

    Raises:
        UserError: if only some turns are to vote, and an answer is of none, or all are of others.
    """
    if voters == "all":
        return tuple(i not in verdicts for i in range(len(completions))) if verdicts else None
    turns = [c.turn for c in completions if c.turn is not None]
    if len(turns) < len(completions):
        raise UserError(
            f"agents.voters = {voters!r}: rollout.workflow returned an answer without a turn, "
            'expected `ttrl.types.Turn` in each; set them, or agents.voters = "all"'
        )
    last: dict[int, int] = {}
    for turn in turns:
        last[turn.trajectory] = max(turn.index, last.get(turn.trajectory, 0))
    wanted = [0 if voters == "first" else last[turn.trajectory] for turn in turns]
    votes = tuple(
        turn.index == index and i not in verdicts
        for i, (turn, index) in enumerate(zip(turns, wanted, strict=True))
    )
    if not any(votes):
        raise UserError(
            f"agents.voters = {voters!r}: nobody would vote, since no answer of rollout.workflow "
            "is of the first turn, whose Turn.index is 0; count turns from 0, or set agents.voters "
            '= "all"'
        )
    return votes
