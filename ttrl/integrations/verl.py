"""Our rewards as a reward manager of verl."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from ttrl.integrations.group_reward import Answer, GroupReward
from ttrl.rewards.estimators import RewardEstimator
from ttrl.settings import AnswerSettings
from ttrl.types import UserError

MOST_AT_ONCE = 1000
"""Calls that Ray runs at once in an actor like verl's reward worker; further ones wait outside."""


@dataclass(slots=True)
class Group:
    """A question's answers, as far as they have come."""

    rewards: asyncio.Future[dict[int, float]]
    """Session -> reward, when they are judged."""
    answers: dict[int, Answer] = field(default_factory=dict)
    """Session -> answer."""
    whole: asyncio.Event = field(default_factory=asyncio.Event)
    """Whether no more will come."""


@register("ttrl")
class VoteRewardManager(RewardManagerBase):  # type: ignore[misc]
    """Pays the answers of a question when all of them are there.

    verl hands a reward manager one answer at a time, so each call waits for the others of its
    group. Advantage estimators of verl see whole groups, but no texts. For verl 0.9, with one
    reward worker, which sees all answers::

        reward.num_workers=1 reward.reward_manager.source=importlib
        reward.reward_manager.module.path=pkg://ttrl.integrations.verl
        reward.reward_manager.name=VoteRewardManager

    Another estimator is a subclass in a file of yours, whose path takes the place of ``pkg://...``.
    A question that the estimator leaves out pays 0 to all, which is no advantage within the group.
    """

    estimator: ClassVar[str | RewardEstimator] = "majority"
    """A name of docs/estimators.md, FILE.py:CLASS, or an estimator."""
    options: ClassVar[Mapping[str, Any]] = {}
    """The estimator's own."""
    answers: ClassVar[AnswerSettings | None] = None
    """How answers are read and compared; None: what stands in a box."""
    seed: ClassVar[int] = 0
    """Of estimators that draw."""
    patience_s: ClassVar[float] = 3600.0
    """Seconds that an answer waits for the others: those whose sampling has failed never come."""

    def __init__(
        self, config: Any, tokenizer: Any, compute_score: Any, **reward_model: Any
    ) -> None:
        """Make the estimator; verl calls this.

        Raises:
            UserError: for a configuration under which groups would not come together here, and for
                an estimator that cannot be had, see `ttrl.integrations.trl.estimator_reward`.
        """
        super().__init__(config, tokenizer, compute_score)
        refused = never_whole(config)
        if refused is not None:
            raise UserError(f"ttrl's reward manager: {refused}")
        self.votes = int(config.actor_rollout_ref.rollout.n)
        self.rewards_of = GroupReward(
            self.estimator, options=self.options, answers=self.answers, seed=self.seed
        )
        self.groups: dict[str, Group] = {}

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Return what an answer earns, when its group is there.

        Raises:
            UserError: if the group does not come together.
        """
        item = data[-1:][0]  # of several turns the last one counts
        known = item.non_tensor_batch
        uid, session = str(known["uid"]), int(known["session_id"])
        loop = asyncio.get_running_loop()
        group = self.groups.setdefault(uid, Group(loop.create_future()))
        group.answers[session] = await loop.run_in_executor(None, self._read, item)
        if len(group.answers) == self.votes:
            self.groups.pop(uid, None)
            group.whole.set()
            await loop.run_in_executor(None, self._judge, group, int(known["global_steps"]), loop)
        elif sum(len(g.answers) for g in self.groups.values()) >= MOST_AT_ONCE:
            self._give_up()
        await self._others(group, uid)
        rewards = await asyncio.shield(group.rewards)
        return {"reward_score": rewards[session], "reward_extra_info": {}}

    async def _others(self, group: Group, uid: str) -> None:
        """Wait until the group is whole."""
        try:
            await asyncio.wait_for(group.whole.wait(), self.patience_s)
        except TimeoutError:
            self.groups.pop(uid, None)
            raise UserError(
                f"{len(group.answers)} of {self.votes} answers to question {uid} came within "
                f"{self.patience_s:g} s: others may have failed, see verl's log; or raise "
                "patience_s"
            ) from None

    def _read(self, item: Any) -> Answer:
        """Read prompt and response, which are padded on the right."""
        prompt_ids, response_ids = (
            item.batch[name][: int(item.non_tensor_batch[length])].tolist()
            for name, length in (("prompts", "prompt_len"), ("responses", "response_len"))
        )
        question, text = (
            self.tokenizer.decode(ids, skip_special_tokens=True)
            for ids in (prompt_ids, response_ids)
        )
        return Answer(question, text, tuple(response_ids))

    def _judge(self, group: Group, step: int, loop: asyncio.AbstractEventLoop) -> None:
        """Pay the answers, in the order of their sessions, or hand on what went wrong."""
        sessions = sorted(group.answers)
        try:
            paid = self.rewards_of([group.answers[session] for session in sessions], step)
        except Exception as error:  # a user's estimator raises what it likes, and all are to know
            loop.call_soon_threadsafe(group.rewards.set_exception, error)
            return
        rewards = {session: reward or 0.0 for session, reward in zip(sessions, paid, strict=True)}
        loop.call_soon_threadsafe(group.rewards.set_result, rewards)

    def _give_up(self) -> None:
        """Let all know that no group that is waited for can become whole."""
        error = UserError(
            f"{MOST_AT_ONCE} answers wait for others of their groups, which Ray does not let in "
            "before: lower data.train_batch_size x actor_rollout_ref.rollout.n"
        )
        for group in self.groups.values():
            group.rewards.set_exception(error)
            group.whole.set()
        self.groups.clear()


def never_whole(config: Any) -> str | None:
    """Say why groups would never be whole, and what to do; None: they are."""
    rollout, trainer = config.actor_rollout_ref.rollout, config.trainer
    if not trainer.use_v1:
        return "trainer.use_v1 = False does not say which answers belong together: set it to True"
    if config.reward.num_workers != 1:
        return (
            f"reward.num_workers = {config.reward.num_workers} would deal the answers to a "
            "question to several processes: set it to 1"
        )
    if rollout.n < 2:
        return f"actor_rollout_ref.rollout.n = {rollout.n}: expected 2 or more, which can vote"
    validates = trainer.val_before_train or trainer.test_freq > 0
    if validates and rollout.val_kwargs.n != rollout.n:
        return (
            "verl rewards its validation's answers here, too, of which there are "
            f"{rollout.val_kwargs.n} and not {rollout.n}: set trainer.val_before_train = False and "
            "trainer.test_freq = -1, or val_kwargs.n = rollout.n, and read its score as agreement"
        )
    return None
