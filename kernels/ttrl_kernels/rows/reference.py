"""The row operations in PyTorch: runs anywhere, and says what the faster backends must compute.

Works in the dtype of the logits (float32, or float64 for the truth). A logit of −inf has p = 0
and contributes nothing; a NaN makes its whole row NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ttrl_kernels.rows.interface import RowGrads, RowStats


def row_stats(
    logits_CV: Tensor, targets_C: Tensor, temperature_C: Tensor, softcap: float | None
) -> RowStats:
    """Statistics of each row, by the shifted logits s = z − max z.

    log_sum = log Σ exp s,  logp = s_y − log_sum,  H = log_sum − Σ p s

    Both parts of H are non-negative, so nothing cancels however large the logits are.
    """
    shifted_CV = _scaled(logits_CV, temperature_C, softcap)
    row_max_C = shifted_CV.amax(-1)
    shifted_CV.sub_(row_max_C[:, None])
    exp_CV = shifted_CV.exp()
    sum_C = exp_CV.sum(-1)
    log_sum_C = sum_C.log()
    logp_C = shifted_CV.gather(1, targets_C[:, None]).squeeze(1) - log_sum_C
    shifted_CV.masked_fill_(exp_CV == 0, 0)  # 0·(−inf) would be NaN
    entropy_C = log_sum_C - exp_CV.mul_(shifted_CV).sum(-1) / sum_C
    return RowStats(row_max_C, log_sum_C, logp_C, entropy_C)


def row_grad_(
    logits_CV: Tensor,
    targets_C: Tensor,
    temperature_C: Tensor,
    softcap: float | None,
    stats: RowStats,
    grads: RowGrads,
) -> None:
    """Overwrite the logits u with dL/du.

    dL/dz_v = g_logp·(1[v = y] − p_v) − g_entropy·p_v·(log p_v + H)
    dL/du_v = dL/dz_v · (1 − tanh²(u_v/s)) / τ
    """
    log_p_CV = _scaled(logits_CV, temperature_C, softcap)
    log_p_CV.sub_(stats.row_max[:, None]).sub_(stats.log_sum[:, None])
    grad_CV = log_p_CV.exp()
    if grads.entropy is None:
        grad_CV.mul_(-grads.logp[:, None])
    else:
        log_p_CV.masked_fill_(grad_CV == 0, 0)  # 0·(−inf) would be NaN
        log_p_CV.add_(stats.entropy[:, None]).mul_(grads.entropy[:, None])
        grad_CV.mul_(log_p_CV.add_(grads.logp[:, None]).neg_())
    grad_CV.scatter_add_(1, targets_C[:, None], grads.logp[:, None])
    if softcap is None:
        torch.div(grad_CV, temperature_C[:, None], out=logits_CV)
    else:
        slope_CV = logits_CV.div_(softcap).tanh_().square_().neg_().add_(1)
        slope_CV.mul_(grad_CV).div_(temperature_C[:, None])


def _scaled(logits_CV: Tensor, temperature_C: Tensor, softcap: float | None) -> Tensor:
    """z = softcap(u) / τ as a new tensor."""
    if softcap is None:
        return logits_CV / temperature_C[:, None]
    return torch.tanh(logits_CV / softcap).mul_(softcap).div_(temperature_C[:, None])
