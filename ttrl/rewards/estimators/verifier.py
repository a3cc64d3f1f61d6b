"""A weighted vote: completions that pass a check count more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, PrivateAttr

from ttrl.reward_models import check_reward_model, make_reward_model, reduce
from ttrl.rewards.estimators.base import Estimator, register
from ttrl.rewards.estimators.readings import spelling
from ttrl.settings import Settings
from ttrl.settings.plugins import errors_as_user_error, is_plugin, load_plugin
from ttrl.types import Estimate, Question, UserError, VotedGroup

if TYPE_CHECKING:
    from ttrl.reward_models import RewardModel


@register("verified")
class Verified(Estimator):
    """T³RL (arXiv 2603.02203): a vote in which verified completions weigh omega.

    The label is the answer with the largest weight, Σ 1 + v (omega - 1) over its voters with
    v = 1 for those that pass; of equal ones, the first in the order of the plain vote. Agreeing
    with it earns 1. Abstentions have no vote, and are not checked. The paper verifies by running
    code that a model writes; here the check is yours, or a reward model's. The group's label is not
    looked at.
    """

    uses_label: ClassVar[bool] = False

    verifier: str
    """FILE.py:FUNCTION from (prompt, completion text) to True or False; called by several
    threads, on hostile text. Or a reward model, as "tiny-prm", see ``[reward_model]``."""
    omega: Annotated[float, Field(ge=1)] = 5.0
    """Votes that a verified completion has."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of a reward model: a completion passes whose score, by ``reward_model.reduce``, is at least
    this."""

    _passes: Any = PrivateAttr(default=None)
    _settings: Settings | None = PrivateAttr(default=None)
    _model: RewardModel | None = PrivateAttr(default=None)
    _lock: Any = PrivateAttr(default_factory=Lock)

    def model_post_init(self, context: Any, /) -> None:
        """Load the user's function: an error in it is to come before a model is loaded."""
        super().model_post_init(context)
        if is_plugin(self.verifier):
            self._passes = load_plugin(self.verifier, "reward.options.verifier")
        else:
            check_reward_model(self.verifier)

    def read_settings(self, settings: Settings) -> None:
        """Keep what a reward model is to be loaded with."""
        self._settings = settings

    def estimate(self, voted: VotedGroup) -> Estimate:
        """Compute r_i = 1[class_i = argmax of the classes' weights]."""
        vote, group = voted.vote, voted.group
        voters = [i for i, cluster in enumerate(vote.cast_G) if cluster is not None]
        texts = [group.completions[i].text for i in voters]
        passed = dict(zip(voters, self._verify(group.question, texts), strict=True))
        weights = [float(count) for count in vote.counts]
        for i in voters:
            cluster = vote.cast_G[i]
            if passed[i] and cluster is not None:
                weights[cluster] += self.omega - 1
        best = max(range(len(weights)), key=weights.__getitem__, default=None)
        total = math.fsum(weights) + vote.abstained
        return Estimate(
            vote=vote,
            rewards_G=tuple(float(c is not None and c == best) for c in vote.clusters_G),
            label=None if best is None else spelling(vote, best),
            confidence=0.0 if best is None else weights[best] / total,
            metrics={
                "verified_share": sum(passed.values()) / vote.votes,
                "overruled": float(best not in (None, 0)),
            },
        )

    def _verify(self, question: Question, texts: Sequence[str]) -> list[bool]:
        if self._passes is not None:
            return [self._own(question.prompt, text) for text in texts]
        with self._lock:  # one model, which would not be faster for several threads
            if self._model is None:
                self._model = self._load()
            scores = self._model.scores(question, texts)
            how = self._settings.reward_model.reduce if self._settings else "last"
        return [reduce(steps, how) >= self.threshold for steps in scores]

    def _load(self) -> RewardModel:
        if self._settings is None:
            raise UserError(
                f"reward.options.verifier = {self.verifier!r} is a reward model, which needs the "
                "settings of a run of ttrl: name FILE.py:FUNCTION, or train with ttrl"
            )
        return make_reward_model(self.verifier, self._settings)

    def _own(self, prompt: str, text: str) -> bool:
        with errors_as_user_error(self.verifier, "reward.options.verifier"):
            passed = self._passes(prompt, text)
        if not isinstance(passed, bool):
            raise UserError(
                f"reward.options.verifier = {self.verifier!r} returned {passed!r}: expected True "
                "or False"
            )
        return passed
