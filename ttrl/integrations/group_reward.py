"""What one question's answers earn, where another trainer has sampled them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ttrl.answers import Grader
from ttrl.rewards.estimators import RewardEstimator, make_estimator
from ttrl.rewards.scorer import GroupScorer
from ttrl.settings import AnswerSettings, Settings
from ttrl.types import Completion, CompletionGroup, Estimate, FinishReason, Question, UserError


class Answer(NamedTuple):
    """All that another trainer hands on of a sampled answer."""

    question: str
    """What was asked: the same of all answers that vote with each other."""
    text: str
    """The answer. Hostile: never evaluated."""
    token_ids: tuple[int, ...]
    """Its tokens."""


class GroupReward:
    """An estimator's rewards of whole groups, by the same code as in `ttrl train`."""

    def __init__(
        self,
        estimator: str | RewardEstimator = "majority",
        *,
        options: Mapping[str, Any] | None = None,
        answers: AnswerSettings | None = None,
        seed: int = 0,
    ) -> None:
        """Make the estimator.

        Args:
            estimator: a name of docs/estimators.md, FILE.py:CLASS, or an estimator.
            options: its options, unless it is one already.
            answers: how answers are read and compared; None: what stands in a box.
            seed: of estimators that draw.

        Raises:
            UserError: for an unknown estimator or option, and one that needs what no other trainer
                hands on, or returns what none takes.
        """
        if isinstance(estimator, str):
            self.name, made = estimator, make_estimator(estimator, options)
        elif options:
            raise UserError(
                f"options = {dict(options)!r} would be ignored: the estimator is an object that "
                "was made already; give it its options there"
            )
        else:
            self.name, made = type(estimator).__qualname__, estimator
        if getattr(made, "uses_logprobs", False):
            raise self._refused("reads log-probs of the sampled tokens, which are not handed on")
        if getattr(made, "own_advantages", False):
            raise self._refused("brings its own advantages, and a reward function returns rewards")
        settings = Settings.model_validate(
            {"name": "other", "model": {"path": "other"}, "data": {"train": "other"}, "seed": seed}
        ).model_copy(update={"answers": answers or AnswerSettings()})
        self.scorer = GroupScorer(settings, Grader(settings.answers), made)

    def __call__(self, group: Sequence[Answer], step: int = 0) -> list[float | None]:
        """Compute what each answer of a group earns; None of all: not to be trained on.

        Args:
            group: all answers to one question.
            step: of training, for estimators that draw.

        Raises:
            UserError: where the estimator fails, reads what is not there, or returns advantages, a
                selection, or a weight other than 0 and 1.
        """
        question = group[0].question
        completions = tuple(TextCompletion.of(answer) for answer in group)
        estimate = self.scorer.estimate(
            CompletionGroup(Question(question, question, ()), completions, policy_version=0),
            labels=None,
            step=step,
        )
        if (returned := _more_than_rewards(estimate)) is not None:
            raise self._refused(f"returned {returned}, and a reward function returns rewards")
        return [reward if estimate.weight else None for reward in estimate.rewards_G]

    def _refused(self, reason: str) -> UserError:
        return UserError(
            f"estimator = {self.name!r} {reason}: choose another, for example 'majority', or train "
            "with ttrl"
        )


def _more_than_rewards(estimate: Estimate) -> str | None:
    """Say what else an estimate holds, which would be lost."""
    if estimate.advantages_G is not None:
        return "advantages of its own"
    if not all(estimate.keep_G or ()):
        return "a selection of answers"
    if estimate.weight not in (0, 1):
        return f"the question's weight {estimate.weight}"
    return None


class _NotHandedOn:
    """A field that raises where it is read: a default would be taken for the truth."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            return self
        raise UserError(
            f"the estimator reads Completion.{self.name}, which other trainers do not hand on: "
            "choose another, for example 'majority', or train with ttrl"
        )

    def __set__(self, instance: object, value: object) -> None:
        pass


class TextCompletion(Completion):
    """A completion of which text and tokens are known, and nothing else."""

    __slots__ = ()
    logprobs = _NotHandedOn()
    top_logprobs = _NotHandedOn()
    finish_reason = _NotHandedOn()

    @classmethod
    def of(cls, answer: Answer) -> TextCompletion:
        """Take an answer."""
        return cls(answer.token_ids, (), answer.text, FinishReason.STOP)
