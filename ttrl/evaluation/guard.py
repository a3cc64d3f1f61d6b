"""Watches a run for signs of a collapse, without labels."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ttrl.settings import GuardSettings

SIGNS = {
    "vote/distinct_answers": ("distinct answers per question", "distinct_fall"),
    "rollout/response_tokens_mean": ("response tokens", "length_fall"),
    "policy/entropy": ("entropy", "entropy_fall"),
}
"""Metric -> what to call it, and the setting that says how far it may fall."""


class CollapseGuard:
    """Compares the last pass over the questions with the first one.

    When a policy learns from its own votes, agreement goes up whether it gets better or worse.
    Worse looks like this (docs/experiments.md): labels that were settled flip; or the majority
    ratio rises while answers, their length or the policy's entropy nearly vanish. The flip rate is
    that of TTRL-Guard (arXiv 2605.19444).
    """

    def __init__(
        self, settings: GuardSettings, steps_per_pass: int, agents: Sequence[str] = ()
    ) -> None:
        """Look at means over ``steps_per_pass`` steps; also of the further policies ``agents``."""
        self.settings = settings
        own = {f"{name}/entropy": (f"entropy of {name}", "entropy_fall") for name in agents}
        self.signs = SIGNS | own
        self.size = steps_per_pass
        self.first: dict[str, float] = {}
        self.window: deque[Mapping[str, float]] = deque(maxlen=steps_per_pass)
        self.is_new = False
        """Whether the last sign was the first one after none."""
        self._alarmed = False

    def sign(self, metrics: Mapping[str, float]) -> str | None:
        """Say what is wrong after a step with these metrics; None if nothing is or nobody asked."""
        self.window.append(metrics)
        found = None if self.settings.on_collapse == "ignore" else self._sign()
        self.is_new = found is not None and not self._alarmed
        self._alarmed = found is not None
        return found

    @property
    def majority_ratio(self) -> float:
        """The mean majority ratio over the last pass, or what there is of it."""
        return self._mean("vote/majority_ratio")

    def state(self) -> dict[str, Any]:
        """Return what the next signs depend on, as JSON."""
        names = ("vote/majority_ratio", "vote/flip_rate", *self.signs)
        window = [{name: step[name] for name in names if name in step} for step in self.window]
        return {"first": self.first, "window": window, "alarmed": self._alarmed}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.first, self._alarmed = dict(state["first"]), state["alarmed"]
        self.window = deque(state["window"], maxlen=self.size)

    def _sign(self) -> str | None:
        if len(self.window) < self.size:
            return None
        if not self.first:
            names = ("vote/majority_ratio", *self.signs)
            self.first = {name: self._mean(name) for name in names if self._has(name)}
        flips = self._mean("vote/flip_rate") if self._all_have("vote/flip_rate") else 0.0
        if flips > self.settings.flip_rate:
            return (
                f"over the last pass {flips:.0%} of the labels changed "
                f"(guard.flip_rate = {self.settings.flip_rate:g})"
            )
        if self._mean("vote/majority_ratio") < self.first["vote/majority_ratio"] + (
            self.settings.rise
        ):
            return None
        for name, (title, setting) in self.signs.items():
            limit = getattr(self.settings, setting)
            if name in self.first and self._has(name):
                before, now = self.first[name], self._mean(name)
                if now < limit * before:
                    return (
                        f"the majority ratio rose while {title} fell from {before:.3g} to "
                        f"{now:.3g} (guard.{setting} = {limit:g})"
                    )
        return None

    def _has(self, name: str) -> bool:
        return any(name in metrics for metrics in self.window)

    def _all_have(self, name: str) -> bool:
        return all(name in metrics for metrics in self.window)

    def _mean(self, name: str) -> float:
        return fmean(metrics[name] for metrics in self.window if name in metrics)


class MismatchGuard:
    """Looks for an engine that samples from another distribution than the policy's.

    Then PPO's ratio is off before anything has been learned. Causes are a coarse numeric type, a
    kernel, or a push of weights that went wrong; or answers recorded from another policy.
    """

    def __init__(self, limit: float) -> None:
        """Warn above ``limit``, see ``guard.sampler_kl``."""
        self.limit = limit
        self._alarmed = False

    def warning(self, metrics: Mapping[str, float]) -> str | None:
        """Return what to say after a step with these metrics: once, until a step is in order."""
        is_new = self.is_off(metrics) and not self._alarmed
        if "mismatch/kl" in metrics:  # else nothing was trained on, and nothing is known
            self._alarmed = self.is_off(metrics)
        if not is_new:
            return None
        return (
            "the engine samples from another distribution than the policy's: KL "
            f"{metrics['mismatch/kl']:.3g} nats per token, largest |log-ratio| "
            f"{metrics['mismatch/max_log_ratio']:.3g} (guard.sampler_kl = {self.limit:g}); try "
            'model.dtype = "float32", or loss.sampler_correction'
        )

    def is_off(self, metrics: Mapping[str, float]) -> bool:
        """Say whether the step's mismatch is above the limit."""
        if self.limit == 0 or metrics.get("rollout/updates_behind", 0) > 0:
            return False  # answers from weights before the last update differ as they should
        return metrics.get("mismatch/kl", 0.0) > self.limit
