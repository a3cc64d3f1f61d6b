"""What a workflow may ask, and what it may return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.sampling import SamplingParams
from ttrl.rollout.workflows.base import OnGroup, Workflow
from ttrl.rollout.workflows.conversation import Conversation
from ttrl.rollout.workflows.single_turn import SingleTurn
from ttrl.settings import Settings
from ttrl.settings.rollout import MOST_TOP_K
from ttrl.types import Completion, CompletionGroup, Estimate, Question, UserError


@dataclass(frozen=True, slots=True)
class PoolAsk:
    """The rollout pool as an `Ask`; answers sampled at another temperature say so."""

    pool: RolloutPool
    temperature: float
    """``rollout.temperature``."""
    decided: Callable[[Sequence[Completion], int], bool] | None = None
    """See `RolloutPool.sample`."""
    top_logprobs: int = 0
    """How many of the likeliest tokens of each place are noted, whoever asks."""

    def __call__(
        self, questions: Sequence[Question], params: SamplingParams, on_group: OnGroup, /
    ) -> list[CompletionGroup]:
        """Sample; see `Ask`.

        Raises:
            UserError: for a ``top_p`` or ``min_p`` without ``top_k``: the loss would not know what
                they left.
        """
        if (params.top_p < 1 or params.min_p > 0) and not 0 < params.top_k <= MOST_TOP_K:
            raise UserError(
                f"rollout.workflow asks with top_p = {params.top_p}, min_p = {params.min_p} and "
                f"top_k = {params.top_k}: expected 1 and 0, or a top_k of 1 to {MOST_TOP_K}, with "
                "which the tokens that are left are noted for the loss"
            )

        def marked(group: CompletionGroup) -> CompletionGroup:
            if params.temperature == self.temperature:
                return group
            at = float(params.temperature)
            return replace(
                group, completions=tuple(replace(c, temperature=at) for c in group.completions)
            )

        params = replace(params, top_logprobs=max(params.top_logprobs, self.top_logprobs))
        groups = self.pool.sample(
            questions, params, lambda group: on_group(marked(group)), self.decided
        )
        return [marked(group) for group in groups]


def refuse_repeated(questions: Sequence[Question], step: int) -> None:
    """Raise a UserError if a step asks two questions of one id, which nothing could tell apart."""
    ids = [question.id for question in questions]
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise UserError(
            f"data.train: step {step} asks question {twice!r} twice: expected different ids in a "
            "step"
        )


def refuse_other_groups(
    groups: Sequence[CompletionGroup], questions: Sequence[Question], name: str
) -> None:
    """Raise a UserError unless there is one group per question, in the same order."""
    if not isinstance(groups, list | tuple) or not all(
        isinstance(group, CompletionGroup) for group in groups
    ):
        raise UserError(
            f"rollout.workflow = {name!r} returned {str(groups)[:200]!r}: expected a list of "
            "CompletionGroup, one for each question"
        )
    found, wanted = ([x.id for x in y] for y in ((g.question for g in groups), questions))
    if found != wanted:
        raise UserError(
            f"rollout.workflow = {name!r} returned groups of {len(found)} questions, {found[:3]} "
            f"..., expected one for each of {len(wanted)}, in their order: {wanted[:3]} ..."
        )
    if empty := [group.question.id for group in groups if not group.completions]:
        raise UserError(f"rollout.workflow = {name!r} returned no answer to {empty[0]!r}")


def estimate_of(group: CompletionGroup, found: Mapping[str, Estimate]) -> Estimate:
    """Return the estimate of a group.

    Raises:
        UserError: if the workflow has not told of it, or of another one of the same question.
    """
    estimate = found.get(group.question.id)
    if estimate is None or len(estimate.rewards_G) != len(group.completions):
        raise UserError(
            f"rollout.workflow returned {len(group.completions)} answers to {group.question.id!r}, "
            "and told on_group of others; expected the very group that is returned"
        )
    return estimate


def later_prompts(groups: Sequence[CompletionGroup]) -> list[Question]:
    """Return the prompts of later turns, none of which is asked again."""
    turns = [c.turn for group in groups for c in group.completions]
    return [turn.asked for turn in turns if turn is not None and turn.asked is not None]


def agents_of(held: Conversation | None, settings: Settings) -> tuple[str, ...]:
    """Return the agents that have a policy each; none where one policy plays all.

    Raises:
        UserError: if nobody knows who they are, or some would have no samples.
    """
    if settings.rollout.policies == "shared":
        return ()
    name = settings.rollout.workflow
    if held is None:
        raise UserError(
            'rollout.policies = "per_agent" needs a plan that says who speaks, and '
            f"rollout.workflow = {name!r} has a run of its own: subclass Conversation without one, "
            "or unset it"
        )
    trained, selection = settings.policy.trained_samples, settings.reward.selection
    if trained < held.calls and selection == "first":
        raise UserError(
            f"policy.trained_samples = {trained} ends before the last of the {held.calls} answers "
            'of a trajectory: with rollout.policies = "per_agent" some agents would learn nothing; '
            f"set {held.calls} or more"
        )
    return held.agents


def refuse_unrecorded(workflow: Workflow, name: str) -> None:
    """Raise a UserError if what a workflow has asked cannot be asked of a record.

    It can where nobody wrote the asking anew: in a single turn, and in a `Conversation`.
    """
    if type(workflow) is not SingleTurn:
        raise UserError(
            f"--replay: rollout.workflow = {name!r} would be run once more on what it has made of "
            'the answers; only those of "single_turn", "debate", "mixture", "chain" and of a class '
            "that gives a plan of turns alone (`Conversation`) can be trained on again"
        )
