"""Reads and pays verdicts: what verifiers box on a solution, with ``agents.chain = "verdict"``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ttrl.answers import Extractor
from ttrl.report.rollouts import RecordedAnswer
from ttrl.settings import Settings
from ttrl.settings.agents import VERIFIER
from ttrl.types import Completion, Estimate, Turn, UserError, Verdict

SAYS = {"1": True, "0": False}
"""What a verdict may be, to the letter; anything else, however close, is none."""


def verdicts_of(
    completions: Sequence[Completion] | Sequence[RecordedAnswer],
    extract: Extractor,
    settings: Settings,
) -> dict[int, Verdict]:
    """Read what verifiers say of the last solution before them in their trajectory.

    Args:
        completions: the answers to one question, just sampled or recorded.
        extract: from a text to what it boxes, as of any answer.
        settings: ``rollout.workflow`` and ``agents.chain``.

    Returns:
        By index of a completion, for those that are verdicts; none but in a chain of verdicts.

    Raises:
        UserError: if recorded ones are no chains.
    """
    if settings.rollout.workflow != "chain" or settings.agents.chain != "verdict":
        return {}
    solutions: dict[int, list[tuple[int, int]]] = defaultdict(list)
    verifiers: dict[int, Turn] = {}
    for i, turn in enumerate(c.turn for c in completions):
        if turn is not None and turn.role == VERIFIER:
            verifiers[i] = turn
        elif turn is not None:
            solutions[turn.trajectory].append((turn.index, i))
    found: dict[int, Verdict] = {}
    for i, turn in verifiers.items():
        before = [place for place in solutions[turn.trajectory] if place[0] < turn.index]
        if not before:
            raise UserError(
                f"a verdict in turn {turn.index} of trajectory {turn.trajectory} is on no "
                "solution: expected the answers of whole chains, as a run has them in rollouts/"
            )
        _, of = max(before)
        found[i] = Verdict(of, SAYS.get((extract(completions[i].text) or "").strip()))
    return found


def paid(estimate: Estimate, verdicts: Mapping[int, Verdict], agrees_G: Sequence[bool]) -> Estimate:
    """Pay a verdict 1 if it is right, else 0; without a label none is.

    Args:
        estimate: what an estimator has made of the answers.
        verdicts: those of the group.
        agrees_G: which answers agree with the estimate's label.
    """
    if not verdicts:
        return estimate
    rewards = list(estimate.rewards_G)
    for i, right in are_right(verdicts, agrees_G).items():
        rewards[i] = float(right and estimate.label is not None)
    return replace(estimate, rewards_G=tuple(rewards), verdicts=verdicts)


def are_right(verdicts: Mapping[int, Verdict], right_G: Sequence[bool]) -> dict[int, bool]:
    """Say by completion which verdicts are right, given which solutions are."""
    return {i: verdict.right == right_G[verdict.of] for i, verdict in verdicts.items()}
