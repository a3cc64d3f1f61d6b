"""The options of the policy loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ttrl_kernels.kl_estimators import KL_ESTIMATORS
from ttrl_kernels.policy_terms import OF_SEQUENCES, POLICY_TERMS

RATIO_LEVELS = ("token", "sequence")


@dataclass(frozen=True)
class PolicyOptions:
    """The options of the loss, checked when built, so that every later function may trust them.

    Raises ValueError for an unknown name or a number out of range.
    """

    policy: str = "ppo_clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    ratio_level: str = "token"
    off_policy_mask: float | None = None
    kl: str = "k3"
    kl_coef: float = 0.0
    kl_bias_correction: bool = False
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        """Check every option; the class says what is raised."""
        _require_choice("policy", self.policy, tuple(POLICY_TERMS))
        _require_choice("ratio_level", self.ratio_level, RATIO_LEVELS)
        _require_choice("kl", self.kl, KL_ESTIMATORS)
        for name in ("clip_low", "clip_high"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected a distance from ratio 1 that is "
                    f"not negative: 0.2 clips at {'0.8' if name == 'clip_low' else '1.2'}"
                )
        if not (math.isfinite(self.kl_coef) and self.kl_coef >= 0):
            raise ValueError(f"kl_coef is {self.kl_coef}, expected a finite number >= 0")
        if not math.isfinite(self.entropy_coef):
            raise ValueError(f"entropy_coef is {self.entropy_coef}, expected a finite number")
        if self.dual_clip is not None and self.policy != "ppo_clip":
            raise ValueError(
                f"dual_clip is {self.dual_clip} with policy={self.policy!r}; it only exists for "
                "policy='ppo_clip': leave it None"
            )
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(f"dual_clip is {self.dual_clip}, expected a ratio above 1, such as 3")
        if self.off_policy_mask is not None and not self.off_policy_mask >= 0:
            raise ValueError(
                f"off_policy_mask is {self.off_policy_mask}, expected a mean log-ratio >= 0 in "
                "nats, or None for no mask"
            )
        if self.ratio_level == "sequence" and self.policy in OF_SEQUENCES:
            raise ValueError(
                f"ratio_level is 'sequence' with policy={self.policy!r}, which makes one ratio "
                "for a sequence by itself: leave it 'token'"
            )

    @property
    def needs_sequences(self) -> str:
        """Say which option needs all log-probs of a sequence at once; empty if none does.

        Then no token's gradient is known before the last log-prob of its sequence.
        """
        if self.ratio_level == "sequence":
            return "ratio_level is 'sequence'"
        if self.policy in OF_SEQUENCES:
            return f"policy is {self.policy!r}"
        if self.off_policy_mask is not None:
            return f"off_policy_mask is {self.off_policy_mask}"
        return ""


def _require_choice(name: str, got: str, choices: tuple[str, ...]) -> None:
    if got not in choices:
        raise ValueError(f"{name} is {got!r}, expected one of {', '.join(choices)}")
