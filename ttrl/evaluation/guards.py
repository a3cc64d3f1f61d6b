"""All that watches a run while it goes on, and may stop it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ttrl.answers import Extractor
from ttrl.evaluation.abstentions import AbstentionGuard
from ttrl.evaluation.guard import CollapseGuard, MismatchGuard
from ttrl.learner.snapshots import WeightSnapshots
from ttrl.learner.trained_model import TrainedModel
from ttrl.settings import Settings
from ttrl.types import CompletionGroup


class Guards:
    """Looks for a collapse, for an engine that drifts, and for a vote without voters."""

    def __init__(
        self,
        settings: Settings,
        extract: Extractor,
        model: TrainedModel,
        window: int,
        note: Callable[[str], object],
    ) -> None:
        """Watch a run from its start.

        Args:
            settings: ``guard`` and ``answers.extract`` count.
            extract: what ``answers.extract`` names.
            model: goes back to earlier weights where ``guard.on_collapse`` is "stop".
            window: steps that are compared with the first so many.
            note: is told of warnings.
        """
        self.best = settings.checkpoint.best
        self.collapse = CollapseGuard(settings.guard, window)
        self.abstention = AbstentionGuard(settings, extract)
        self.mismatch = MismatchGuard(settings.guard.sampler_kl)
        stopping = settings.guard.on_collapse == "stop"
        self.snapshots = WeightSnapshots(model, window) if stopping else None
        self.note = note

    def stateful(self) -> dict[str, Any]:
        """Return those that have a state, by what a checkpoint calls it."""
        found = {"guard": self.collapse, "abstention": self.abstention}
        return found if self.snapshots is None else {**found, "snapshots": self.snapshots}

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
        if self.snapshots is None:
            return None
        if sign is None:
            self.snapshots.after_step(step)
            return None
        kept = self.snapshots.restore()
        self.note(f"stopped in step {step}; the model is that of step {kept}")
        return f"step {step}: {sign}; the model is that of step {kept}"

    def _without_voters(
        self, step: int, groups: Sequence[CompletionGroup], metrics: dict[str, float]
    ) -> str | None:
        share = metrics["vote/abstention_share"]
        self.warn_of_abstentions(f"step {step}", share, groups)
        if (reason := self.abstention.stop(share)) is None:
            return None
        self.note(f"stopped in step {step}: {reason}")
        return f"step {step}: {reason}"
