"""All that watches a run while it goes on, and may stop it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ttrl.answers import Extractor
from ttrl.evaluation.abstentions import AbstentionGuard
from ttrl.evaluation.guard import CollapseGuard, MismatchGuard
from ttrl.evaluation.stopping import StoppingRule
from ttrl.learner.policies import Policies
from ttrl.learner.snapshots import WeightSnapshots
from ttrl.settings import Settings
from ttrl.types import CompletionGroup


class Guards:
    """Looks for a collapse, for an engine that drifts, and for a vote without voters."""

    def __init__(
        self,
        settings: Settings,
        extract: Extractor,
        policies: Policies,
        window: int,
        note: Callable[[str], object],
    ) -> None:
        """Watch a run from its start.

        Args:
            settings: ``guard``, ``stopping`` and ``answers.extract`` count.
            extract: what ``answers.extract`` names.
            policies: go back to earlier weights where ``guard.on_collapse`` is "stop", or
                ``stopping.by_votes`` is set.
            window: steps that are compared with the first so many.
            note: is told of warnings.
        """
        self.best = settings.checkpoint.best
        self.collapse = CollapseGuard(settings.guard, window, tuple(policies.further))
        self.abstention = AbstentionGuard(settings, extract)
        self.mismatch = MismatchGuard(settings.guard.sampler_kl)
        by_votes = settings.stopping.by_votes
        self.stopping = StoppingRule(settings.stopping, window) if by_votes else None
        goes_back = by_votes or settings.guard.on_collapse == "stop"
        self.snapshots = WeightSnapshots(policies, window) if goes_back else None
        self.note = note

    def stateful(self) -> dict[str, Any]:
        """Return those that have a state, by what a checkpoint calls it."""
        found = {
            "guard": self.collapse,
            "abstention": self.abstention,
            "stopping": self.stopping,
            "snapshots": self.snapshots,
        }
        return {name: part for name, part in found.items() if part is not None}

    def reason_to_stop(
        self, step: int, groups: Sequence[CompletionGroup], metrics: dict[str, float]
    ) -> str | None:
        """Return why the run must stop after this step, if it must; adds ``guard/...``."""
        return self._collapsed(step, metrics) or self._without_voters(step, groups, metrics)

    def score(self, metrics: Mapping[str, float]) -> float | None:
        """Rate the policy by ``checkpoint.best``; None if nobody asks, or it collapses."""
        match self.best:
            case "majority_ratio":
                return None if metrics["guard/collapse"] else self.collapse.majority_ratio
            case "held_out":
                return metrics.get("eval/held_out/pass@1")
        return None

    def warn_of_abstentions(
        self, when: str, share: float, groups: Sequence[CompletionGroup]
    ) -> None:
        """Warn if nearly no completion of these ``groups`` had an answer."""
        if (warning := self.abstention.warning(share, groups)) is not None:
            self.note(f"{when}: warning: {warning}")

    def _collapsed(self, step: int, metrics: dict[str, float]) -> str | None:
        """Return what looks like a collapse, with the weights restored."""
        sign = self.collapse.sign(metrics)
        metrics["guard/collapse"] = float(sign is not None)
        metrics["guard/mismatch"] = float(self.mismatch.is_off(metrics))
        if (warning := self.mismatch.warning(metrics)) is not None:
            self.note(f"step {step}: warning: {warning}")
        if sign is not None and self.collapse.is_new:
            self.note(f"step {step}: warning: looks like a collapse: {sign}")
        if self.stopping is not None:
            return self._ended(self.stopping, step, metrics, sign)
        if self.snapshots is None:
            return None
        if sign is None:
            self.snapshots.after_step(step)
            return None
        kept = self.snapshots.restore()
        self.note(f"stopped in step {step}; the model is that of step {kept}")
        return f"step {step}: {sign}; the model is that of step {kept}"

    def _ended(
        self, rule: StoppingRule, step: int, metrics: Mapping[str, float], sign: str | None
    ) -> str | None:
        """Return why the votes end the run, with the best weights restored; keep them if not."""
        assert self.snapshots is not None
        ending = rule.after_step(step, metrics)
        if ending is None or ending.goes_back:
            self.snapshots.after_step(step, before_is_better=rule.promoted)
        if ending is None:
            return None
        kept = self.snapshots.restore() if ending.goes_back else step
        reason = ending.reason if sign is None else f"{ending.reason}: {sign}"
        self.note(f"stopped in step {step}: {reason}; the model is that of step {kept}")
        return f"step {step}: {reason}; the model is that of step {kept}"

    def _without_voters(
        self, step: int, groups: Sequence[CompletionGroup], metrics: dict[str, float]
    ) -> str | None:
        share = metrics["vote/abstention_share"]
        self.warn_of_abstentions(f"step {step}", share, groups)
        if (reason := self.abstention.stop(share)) is None:
            return None
        self.note(f"stopped in step {step}: {reason}")
        return f"step {step}: {reason}"
