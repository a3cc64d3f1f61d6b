"""The majority vote as a reward function of TRL's trainers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ttrl.answers import Grader, make_extractor
from ttrl.rewards.vote import majority_vote
from ttrl.settings import AnswerSettings
from ttrl.types import UserError

RewardFunction = Callable[..., list[float]]


def majority_reward(
    num_generations: int, *, answers: AnswerSettings | None = None
) -> RewardFunction:
    r"""Make a reward function that pays 1 for agreeing with the majority of a prompt's answers.

    The reward of TTRL (arXiv 2504.16084): no column of the data set is read. An answer that cannot
    be read does not vote and earns 0.

    Example::

        GRPOTrainer(model, majority_reward(8), GRPOConfig(num_generations=8, ...), train_dataset)

    Args:
        num_generations: `GRPOConfig.num_generations`, the answers to each prompt.
        answers: how answers are read and compared; None: what stands in ``\boxed{...}``.

    Raises:
        UserError: when it is called, for a process that has not all answers to its prompts.
    """
    if num_generations < 2:
        raise UserError(f"num_generations = {num_generations}: expected 2 or more, which can vote")
    settings = answers or AnswerSettings()
    extract, grader = make_extractor(settings.extract), Grader(settings)

    def majority_reward(
        prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        rewards: list[float] = []
        for start in range(0, len(completions), num_generations):
            group = slice(start, start + num_generations)
            _refuse_split(prompts[group], num_generations)
            texts = [_text(completion) for completion in completions[group]]
            vote = majority_vote([extract(text) for text in texts], grader)
            rewards += [float(cluster == 0) for cluster in vote.clusters_G]
        return rewards

    return majority_reward


def _refuse_split(prompts: Sequence[Any], num_generations: int) -> None:
    if len(prompts) < num_generations or any(prompt != prompts[0] for prompt in prompts):
        raise UserError(
            f"majority_reward: expected {num_generations} answers to each prompt, one after the "
            "other, got some of several prompts: give num_generations as in GRPOConfig, and let "
            "per_device_train_batch_size x steps_per_generation be a multiple of it"
        )


def _text(completion: Any) -> str:
    """Return a completion's text: it is a string, or messages, of which the last one counts."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"])
