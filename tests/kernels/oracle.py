"""`linear_policy_loss` beside the float64 oracle."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from cases import (
    Case,
    as_float64,
    loss_magnitude,
    run_loss,
)
from tolerances import assert_no_worse
from ttrl_kernels import linear_policy_loss
from ttrl_kernels.loss_math import policy_loss_reference

if TYPE_CHECKING:
    pass


def compare(
    case: Case, dtype: torch.dtype, scale: float = 1.0, backend: str = "auto"
) -> dict[str, torch.Tensor]:
    ours = run_loss(partial(linear_policy_loss, backend=backend), case, scale)
    truth = run_loss(policy_loss_reference, as_float64(*case), scale)
    plain = run_loss(policy_loss_reference, case, scale)
    scales = {"loss": loss_magnitude(case)}
    for name in truth:
        assert_no_worse(name, dtype, ours[name], truth[name], plain[name], scales.get(name))
    return ours
