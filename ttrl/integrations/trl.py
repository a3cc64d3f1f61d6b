"""Our rewards as reward functions of TRL's trainers, on one process or several."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch.distributed as dist

from ttrl.integrations.group_reward import Answer, GroupReward
from ttrl.rewards.estimators import RewardEstimator
from ttrl.settings import AnswerSettings
from ttrl.system.ranks import Ranks
from ttrl.types import UserError

RewardFunction = Callable[..., list[float | None]]


def majority_reward(
    num_generations: int, *, answers: AnswerSettings | None = None
) -> RewardFunction:
    r"""Make a reward function that pays 1 for agreeing with the majority of a prompt's answers.

    The reward of TTRL (arXiv 2504.16084): no column of the data set is read. An answer that cannot
    be read does not vote and earns 0. On several ranks a prompt's answers vote together, wherever
    they are.

    Example::

        GRPOTrainer(model, majority_reward(8), GRPOConfig(num_generations=8, ...), train_dataset)

    Args:
        num_generations: `GRPOConfig.num_generations`, the answers to each prompt.
        answers: how answers are read and compared; None: what stands in ``\boxed{...}``.

    Raises:
        UserError: when it is called, for answers that are not those of whole groups.
    """
    return estimator_reward("majority", num_generations, answers=answers)


def estimator_reward(
    estimator: str | RewardEstimator,
    num_generations: int,
    *,
    options: Mapping[str, Any] | None = None,
    answers: AnswerSettings | None = None,
    seed: int = 0,
) -> RewardFunction:
    r"""Make a reward function of any estimator that texts are enough for.

    Not of those that read log-probs (``confidence``, ``scrl``, ``scope``) or bring advantages of
    their own (``restrain``, ``ddrl``, ``ttrl_guard``). An estimator sees no earlier vote on a
    question; one that leaves a question out returns None, which TRL gives an advantage of 0.

    Example::

        GRPOTrainer(model, estimator_reward("soft", 8), GRPOConfig(num_generations=8, ...), rows)

    Args:
        estimator: a name of docs/estimators.md, FILE.py:CLASS, or an estimator.
        num_generations: `GRPOConfig.num_generations`, the answers to each prompt.
        options: the estimator's, unless it is an object already.
        answers: how answers are read and compared; None: what stands in ``\boxed{...}``.
        seed: of estimators that draw; they draw anew in each step.

    Raises:
        UserError: for an estimator that cannot be had here; when called, see `majority_reward`.
    """
    if num_generations < 2:
        raise UserError(f"num_generations = {num_generations}: expected 2 or more, which can vote")
    rewards_of = GroupReward(estimator, options=options, answers=answers, seed=seed)

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        step = 1 if trainer_state is None else trainer_state.global_step + 1
        ids = completion_ids or [()] * len(completions)
        own = [
            Answer(_question(prompt), _text(completion), tuple(tokens))
            for prompt, completion, tokens in zip(prompts, completions, ids, strict=True)
        ]

        def judged(answers: Sequence[Answer]) -> list[float | None]:
            groups = [
                _whole(answers[start : start + num_generations], num_generations)
                for start in range(0, len(answers), num_generations)
            ]
            return [*chain.from_iterable(rewards_of(group, step) for group in groups)]

        return _on_all_ranks(own, num_generations, judged)

    reward.__name__ = f"{rewards_of.name}_reward"  # that of its metric in TRL
    return reward


def _on_all_ranks(
    own: Sequence[Answer],
    num_generations: int,
    judged: Callable[[Sequence[Answer]], list[float | None]],
) -> list[float | None]:
    """Judge each group once, on the rank where it begins; all ranks call this together.

    TRL deals a generation's answers to the ranks in order, as many to each as it trains on at once,
    so that groups are whole only if all answers are put one after the other.
    """
    ranks = _ranks()
    counts = ranks.gather(len(own))
    if not any(count % num_generations for count in counts):
        return judged(own)
    everyone = [*chain.from_iterable(ranks.gather(own))]
    start = sum(counts[: ranks.rank])
    stop = start + len(own)
    begin, end = (-(-place // num_generations) * num_generations for place in (start, stop))
    rewards = [*chain.from_iterable(ranks.gather(judged(everyone[begin:end])))]
    return rewards[start:stop]


def _ranks() -> Ranks:
    """Return this process's place among those that TRL was launched in."""
    if not (dist.is_available() and dist.is_initialized()):
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


def _whole(group: Sequence[Answer], num_generations: int) -> Sequence[Answer]:
    if len(group) < num_generations or len({answer.question for answer in group}) > 1:
        raise UserError(
            f"expected {num_generations} answers to each prompt, one after the other, got some of "
            "several prompts: give num_generations as in GRPOConfig, and let num_generations_eval "
            "be the same"
        )
    return group


def _question(prompt: Any) -> str:
    """Return what tells a prompt from others: it is a string, or messages."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, default=str)


def _text(completion: Any) -> str:
    """Return a completion's text: it is a string, or messages, of which the last one counts."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"])
