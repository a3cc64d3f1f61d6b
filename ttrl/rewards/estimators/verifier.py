"""A weighted vote: completions that pass a check count more."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from pydantic import Field, PrivateAttr

from ttrl.rewards.estimators.base import Estimator, register
from ttrl.rewards.estimators.readings import spelling
from ttrl.settings.plugins import errors_as_user_error, load_plugin
from ttrl.types import Estimate, UserError, VotedGroup


@register("verified")
class Verified(Estimator):
    """T³RL (arXiv 2603.02203): a vote in which verified completions weigh omega.

    The label is the answer with the largest weight, Σ 1 + v (omega - 1) over its voters with
    v = 1 for those that pass; of equal ones, the first in the order of the plain vote. Agreeing
    with it earns 1. Abstentions have no vote, and are not checked. The paper verifies by running
    code that a model writes; here the check is yours. The group's label is not looked at.
    """

    uses_label: ClassVar[bool] = False

    verifier: str
    """FILE.py:FUNCTION from (prompt, completion text) to True or False; called by several
    threads, on hostile text."""
    omega: Annotated[float, Field(ge=1)] = 5.0
    """Votes that a verified completion has."""

    _passes: Callable[[str, str], Any] = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Load the user's function: an error in it is to come before a model is loaded."""
        self._passes = load_plugin(self.verifier, "reward.options.verifier")

    def estimate(self, voted: VotedGroup) -> Estimate:
        """Compute r_i = 1[class_i = argmax of the classes' weights]."""
        vote, group = voted.vote, voted.group
        passed_G = [
            cluster is not None and self._verify(group.question.prompt, completion.text)
            for cluster, completion in zip(vote.clusters_G, group.completions, strict=True)
        ]
        weights = [float(count) for count in vote.counts]
        for cluster, passed in zip(vote.clusters_G, passed_G, strict=True):
            if cluster is not None and passed:
                weights[cluster] += self.omega - 1
        best = max(range(len(weights)), key=weights.__getitem__, default=None)
        total = math.fsum(weights) + vote.abstained
        return Estimate(
            vote=vote,
            rewards_G=tuple(float(c is not None and c == best) for c in vote.clusters_G),
            label=None if best is None else spelling(vote, best),
            confidence=0.0 if best is None else weights[best] / total,
            metrics={
                "verified_share": sum(passed_G) / len(passed_G),
                "overruled": float(best not in (None, 0)),
            },
        )

    def _verify(self, prompt: str, text: str) -> bool:
        with errors_as_user_error(self.verifier, "reward.options.verifier"):
            passed = self._passes(prompt, text)
        if not isinstance(passed, bool):
            raise UserError(
                f"reward.options.verifier = {self.verifier!r} returned {passed!r}: expected True "
                "or False"
            )
        return passed
