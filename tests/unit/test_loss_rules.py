"""Rules between the settings of [loss], and what is allowed at their borders."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import make_settings
from ttrl_kernels.kl_estimators import KL_ESTIMATORS
from ttrl_kernels.policy_terms import POLICY_TERMS

from ttrl.settings import LossSettings

BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"policy": "gmpo", "ratio_level": "sequence"}, 'has no meaning with loss.policy = "gmpo"'),
    ({"kl_bias_correction": True}, "kl_bias_correction = true needs loss.kl_coef above 0"),
    ({"kl_estimator": "k3+"}, 'loss.kl_estimator = "k3+" needs loss.kl_coef above 0'),
    ({"entropy_coef_step": 0.1}, "loss.entropy_coef_step = 0.1 needs loss.entropy_target"),
    ({"entropy_coef_max": 0.5}, "loss.entropy_coef_max = 0.5 needs loss.entropy_target"),
    (
        {"entropy_target": 0.2, "entropy_coef": 2.0},
        "loss.entropy_coef = 2.0 is more than loss.entropy_coef_max = 1.0",
    ),
    (
        {"sampler_level": "sequence_product"},
        'loss.sampler_level = "sequence_product" needs loss.sampler_correction',
    ),
    ({"sampler_normalize": True}, "sampler_normalize = true needs loss.sampler_correction"),
    (
        {
            "sampler_correction": "truncate",
            "old_logprobs": "policy",
            "sampler_ratio_floor": 0.5,
        },
        'loss.sampler_ratio_floor = 0.5 needs loss.sampler_correction = "mask"',
    ),
    ({"sampler_rejection": "token"}, '"token" needs loss.sampler_rejection_bound'),
    ({"sampler_rejection_bound": 1.0}, "sampler_rejection_bound = 1.0 needs loss.sampler_rejecti"),
    ({"sampler_rejection_kl": "k1"}, 'sampler_rejection_kl = "k1" needs loss.sampler_rejection'),
    (
        {"covariance": "clip", "policy": "none"},
        'loss.covariance = "clip" needs loss.policy = "ppo_clip", not "none"',
    ),
    ({"covariance": "kl"}, 'loss.covariance = "kl" needs loss.policy = "none", not "ppo_clip"'),
    ({"covariance_share": 0.1}, "loss.covariance_share = 0.1 needs loss.covariance"),
    (
        {"covariance": "kl", "policy": "none", "covariance_bounds": [0.5, 2.0]},
        'loss.covariance_bounds = [0.5, 2.0] needs loss.covariance = "clip"',
    ),
    (
        {"covariance": "clip", "covariance_kl_coef": 0.1},
        'loss.covariance_kl_coef = 0.1 needs loss.covariance = "kl"',
    ),
    (
        {"covariance": "clip", "covariance_bounds": [5.0, 1.0]},
        "loss.covariance_bounds = [5.0, 1.0]: expected the lower one first",
    ),
]


@pytest.mark.parametrize(("loss", "message"), BROKEN)
def test_a_broken_rule_says_what_to_do(loss: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        make_settings(loss=loss)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "loss",
    [
        {"policy": "cispo", "clip_low": 1.0, "clip_high": 4.0},
        {"policy": "gmpo", "off_policy_mask": 0.0},
        {"sampler_rejection": "token", "sampler_rejection_bound": 1.0},
        {"old_logprobs": "policy", "sampler_correction": "mask", "sampler_ratio_floor": 0.0},
        {"covariance": "kl", "policy": "none", "covariance_kl_coef": 0.1},
        {"kl_coef": 0.1, "kl_estimator": "abs+", "kl_bias_correction": True},
        {"entropy_target": 0.2, "entropy_coef": 1.0},
    ],
)
def test_what_fits_together_is_accepted(loss: dict[str, Any]) -> None:
    found = make_settings(loss=loss).loss
    assert all(
        getattr(found, k) == (tuple(v) if isinstance(v, list) else v) for k, v in loss.items()
    )


@pytest.mark.parametrize("clip_low", [-0.1, 1.1])
def test_a_lower_clip_is_a_ratio(clip_low: float) -> None:
    with pytest.raises(ValueError, match=r"loss\.clip_low"):
        make_settings(loss={"clip_low": clip_low})


def test_the_settings_name_what_the_kernels_have() -> None:
    fields = LossSettings.model_fields
    assert set(fields["policy"].annotation.__args__) == set(POLICY_TERMS)
    assert set(fields["kl_estimator"].annotation.__args__) == set(KL_ESTIMATORS)
