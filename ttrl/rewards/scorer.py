"""From a group of completions to its estimate: extract, vote, compare with the label, estimate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ttrl.answers import Grader, make_extractor
from ttrl.rewards.estimate_checks import checked_estimate
from ttrl.rewards.estimators import RewardEstimator, make_estimator
from ttrl.rewards.estimators.agreement import Majority
from ttrl.rewards.estimators.base import Estimator
from ttrl.rewards.extra import ExtraRewards
from ttrl.rewards.shaping import shaped_rewards
from ttrl.rewards.verdicts import paid, verdicts_of
from ttrl.rewards.vote import is_settled, majority_vote, same_label
from ttrl.rewards.voters import voters_of
from ttrl.settings import Settings
from ttrl.settings.plugins import errors_as_user_error, is_plugin
from ttrl.settings.reward import TOKEN_ADVANTAGES
from ttrl.settings.rollout import IN_TURNS
from ttrl.types import (
    Completion,
    CompletionGroup,
    Estimate,
    PastVote,
    Question,
    UserError,
    Vote,
    VotedGroup,
)

if TYPE_CHECKING:
    from ttrl.rewards.labels import Labels  # imports torch, which checking settings can do without

Judged = TypeVar("Judged")

GRADING_THREADS = 4
"""Threads that grade; they wait for worker processes most of the time."""


class GroupScorer:
    """Turns groups into estimates: extract, vote, compare with the label, estimate.

    Several threads use it at once.
    """

    def __init__(
        self, settings: Settings, grader: Grader, estimator: RewardEstimator | None = None
    ) -> None:
        """Read the estimator and the extractor that the settings name.

        Args:
            settings: ``answers.extract``, ``reward`` and ``seed`` count.
            grader: says which answers are equivalent.
            estimator: takes the place of the one that ``reward.estimator`` names.

        Raises:
            UserError: if there is no such estimator, extractor or extra reward, or the estimator
                would not look at the labels that were asked for, or leaves nothing to add to.
        """
        reward = settings.reward
        self.settings = settings
        self.grader = grader
        self.extract = make_extractor(settings.answers.extract)
        self.name = reward.estimator if estimator is None else type(estimator).__qualname__
        self.foreign = estimator is not None or is_plugin(reward.estimator)
        """Whether the estimator is code that we did not write."""
        if estimator is not None and reward.options:
            raise UserError(
                f"reward.options = {reward.options!r} would be ignored: the estimator is an object "
                "that was made already; give it its options there"
            )
        if estimator is None:
            estimator = make_estimator(reward.estimator, reward.options)
            if isinstance(estimator, Estimator):
                estimator.read_settings(settings)
        self.estimator = estimator
        self._refuse_unfit()
        self.extra = ExtraRewards(settings)
        if reward.extra and self._own_advantages:
            raise _nothing_to_add_to(self.name)
        self.top_logprobs: int = getattr(self.estimator, "top_logprobs", 0)
        """How many of the likeliest tokens of each place the estimator reads."""
        self._failed: UserError | None = None
        self.history: dict[str, tuple[PastVote, ...]] = {}
        """Question id -> the question's earlier visits, oldest first."""

    def vote(self, group: CompletionGroup) -> Vote:
        """Return the group's majority vote."""
        return self._vote(group.completions)

    def estimate(
        self, group: CompletionGroup, labels: Labels, step: int, vote: Vote | None = None
    ) -> Estimate:
        """Estimate what a group's answers are worth.

        Args:
            group: one question's completions.
            labels: labels that do not come from the voters; None where they do.
            step: the training step, for random numbers.
            vote: what `vote` has returned of the group; None: nobody has asked.

        Raises:
            UserError: for what a user's estimator or extractor raises, and for an estimate that
                cannot train the policy.
        """
        if self._failed is not None:
            raise self._failed
        vote = vote or self.vote(group)
        if labels is None:
            label, agrees_G = vote.majority, tuple(cluster == 0 for cluster in vote.clusters_G)
        else:
            label = labels.get(group.question.id)
            agrees_G = self._agree(vote, label)
        history = self.history.get(group.question.id, ())
        voted = VotedGroup(
            group=group,
            vote=vote,
            label=label,
            agrees_G=agrees_G,
            history=history,
            changed=self._changed(history, label),
            stream=(self.settings.seed, "reward", step, group.question.id),
        )
        with errors_as_user_error(self.name, "reward.estimator") if self.foreign else nullcontext():
            estimate = self.estimator.estimate(voted)
        checked = checked_estimate(estimate, len(group.completions), self.name)
        if self.extra.functions and checked.advantages_G is not None:
            raise _nothing_to_add_to(self.name)
        if any(c.turn is not None for c in group.completions):
            self._refuse_in_turns(checked.advantages_G is not None)
        if verdicts := verdicts_of(group.completions, self.extract, self.settings):
            if checked.label != label:  # an estimator may elect another
                agrees_G = self._agree(vote, checked.label)
            checked = paid(checked, verdicts, agrees_G)
        return replace(
            checked,
            extra_rewards=self.extra.of(group),
            greedy_reward=self._greedy_reward(group, vote, label),
            shaped_G=shaped_rewards(group, checked.rewards_G, self.settings.agents),
        )

    def decided(self, completions: Sequence[Completion], remaining: int) -> bool:
        """Say whether ``remaining`` further votes cannot change who wins, not even by a tie.

        What a user's extractor raises here is raised by `estimate`: sampling goes on, so that
        what has been sampled can be kept.
        """
        try:
            vote = self._vote(completions)
        except UserError as error:
            self._failed = error
            return False
        return is_settled(vote.counts, remaining)

    def remember(self, step: int, groups: list[CompletionGroup], estimates: list[Estimate]) -> None:
        """Make a finished step part of the history."""
        for group, estimate in zip(groups, estimates, strict=True):
            earlier = self.history.get(group.question.id, ())
            changed = self._changed(earlier, estimate.label)
            past = PastVote(step, estimate.label, estimate.vote.majority_ratio, changed)
            self.history[group.question.id] = (*earlier, past)

    def forget(self, questions: Sequence[Question]) -> None:
        """Drop the history of questions that are not asked again."""
        for question in questions:
            self.history.pop(question.id, None)

    @property
    def _own_advantages(self) -> bool:
        return bool(getattr(self.estimator, "own_advantages", False))

    def _refuse_unfit(self) -> None:
        """Raise a UserError if the estimator does not go with the settings, as far as it says."""
        reward = self.settings.reward
        if reward.labels != "votes" and not getattr(self.estimator, "uses_label", True):
            raise UserError(
                f"reward.labels = {reward.labels!r} would be ignored: reward.estimator = "
                f"{self.name!r} weighs the voters' own answers and looks at no label; "
                'choose another, for example "majority"'
            )
        if reward.advantages == "remax" and type(self.estimator) is not Majority:
            raise UserError(
                'reward.advantages = "remax" needs reward.estimator = "majority", got '
                f"{self.name!r}: what a greedy answer, which does not vote, would earn from others "
                "nobody knows"
            )
        if self._own_advantages and reward.advantages in TOKEN_ADVANTAGES:
            raise UserError(
                f"reward.advantages = {reward.advantages!r} would be ignored: reward.estimator = "
                f"{self.name!r} says itself what an answer is worth; choose another, for example "
                '"majority"'
            )
        if self.settings.rollout.workflow in IN_TURNS:
            self._refuse_in_turns(self._own_advantages)

    def _refuse_in_turns(self, own_advantages: bool) -> None:
        """Raise a UserError if the estimator compares answers that have read different prompts."""
        problem = "compares each answer with all others, also of other turns"
        if getattr(self.estimator, "many_labels", False):
            problem = "gives answers labels of their own, by subgroups of all turns"
        elif not own_advantages:
            return
        raise UserError(
            f"rollout.workflow = {self.settings.rollout.workflow!r} does not go with "
            f"reward.estimator = {self.name!r}, which {problem}: what has read others' answers is "
            'compared with its like alone; choose another, for example "majority"'
        )

    def _changed(self, history: Sequence[PastVote], label: str | None) -> bool:
        return bool(history) and not same_label(history[-1].label, label, self.grader)

    def state(self) -> dict[str, list[list[Any]]]:
        """Return the history as JSON: question id -> the fields of each `PastVote`."""
        return {
            question: [list(astuple(past)) for past in earlier]
            for question, earlier in self.history.items()
        }

    def load_state(self, state: Mapping[str, list[list[Any]]]) -> None:
        """Restore the history that `state` returned."""
        self.history = {
            question: tuple(PastVote(*visit) for visit in visits)
            for question, visits in state.items()
        }

    def _greedy_reward(self, group: CompletionGroup, vote: Vote, label: str | None) -> float | None:
        """Compute what `majority` would pay for the greedy answer, which does not vote."""
        if group.greedy is None or label is None:
            return None if group.greedy is None else 0.0
        answers = (*vote.answers_G, self.extract(group.greedy.text))
        return float(self.grader.agree(answers, label)[-1])

    def _agree(self, vote: Vote, label: str | None) -> tuple[bool, ...]:
        answers_G = vote.answers_G
        return (False,) * len(answers_G) if label is None else self.grader.agree(answers_G, label)

    def _vote(self, completions: Sequence[Completion]) -> Vote:
        verdicts = verdicts_of(completions, self.extract, self.settings)
        answers = [
            None if i in verdicts else self.extract(c.text) for i, c in enumerate(completions)
        ]
        voters_G = voters_of(completions, self.settings.agents.voters, verdicts)
        return majority_vote(answers, self.grader, voters_G)


def check_scoring(settings: Settings) -> None:
    """Raise a UserError for an estimator, extractor or option that is unknown or does not fit."""
    GroupScorer(settings, Grader(settings.answers))  # which starts nothing before it is asked


def _nothing_to_add_to(estimator: str) -> UserError:
    return UserError(
        f"reward.extra would be ignored: reward.estimator = {estimator!r} brings its own "
        "advantages, to which no reward is added; unset reward.extra, or choose another estimator"
    )


@contextmanager
def in_background(
    judge: Callable[[CompletionGroup], Judged],
) -> Iterator[tuple[Callable[[CompletionGroup], None], dict[str, Future[Judged]]]]:
    """Judge groups while others are still being sampled.

    Yields a function that hands a group over and returns at once, and the futures by question id.
    An error or Ctrl-C does not wait for them: what has not begun is dropped.
    """
    futures: dict[str, Future[Judged]] = {}
    threads = ThreadPoolExecutor(GRADING_THREADS, thread_name_prefix="judge")

    def submit(group: CompletionGroup) -> None:
        futures[group.question.id] = threads.submit(judge, group)

    try:
        yield submit, futures
    except BaseException:
        threads.shutdown(wait=False, cancel_futures=True)
        raise
    threads.shutdown()
