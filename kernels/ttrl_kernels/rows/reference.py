"""The row operations in PyTorch: runs anywhere, and says what the faster backends must compute.

Works in the dtype of the temperatures (float32, or float64 for the truth), whatever the logits are
stored in. A logit of −inf has p = 0 and contributes nothing; a NaN makes its whole row NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ttrl_kernels.rows.interface import RowGrads, RowStats


def row_stats(
    logits_CV: Tensor, targets_C: Tensor, temperature_C: Tensor, softcap: float | None
) -> RowStats:
    """Compute the statistics of each row from the shifted logits s = z − max z.

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
    rows_K: Tensor,
    targets_K: Tensor,
    temperature_K: Tensor,
    softcap: float | None,
    stats_K: RowStats,
    grads_K: RowGrads,
    dtype: torch.dtype,
) -> Tensor:
    """Compute dL/du of some rows of the logits u, which are overwritten.

    dL/dz_v = g_logp·(1[v = y] − p_v) − g_entropy·p_v·(log p_v + H)
    dL/du_v = dL/dz_v · (1 − tanh²(u_v/s)) / τ
    """
    moved = (rows_K >= len(rows_K)).nonzero().squeeze(1)
    logits_CV[moved] = logits_CV[rows_K[moved]]
    logits_KV = logits_CV[: len(rows_K)]

    log_p_KV = _scaled(logits_KV, temperature_K, softcap)
    log_p_KV.sub_(stats_K.row_max[:, None]).sub_(stats_K.log_sum[:, None])
    grad_KV = log_p_KV.exp()
    if grads_K.entropy is None:
        grad_KV.mul_(-grads_K.logp[:, None])
    else:
        log_p_KV.masked_fill_(grad_KV == 0, 0)  # 0·(−inf) would be NaN
        log_p_KV.add_(stats_K.entropy[:, None]).mul_(grads_K.entropy[:, None])
        grad_KV.mul_(log_p_KV.add_(grads_K.logp[:, None]).neg_())
    grad_KV.scatter_add_(1, targets_K[:, None], grads_K.logp[:, None])
    if softcap is None:
        torch.div(grad_KV, temperature_K[:, None], out=logits_KV)
    else:
        slope_KV = logits_KV.to(grad_KV.dtype).div_(softcap).tanh_().square_().neg_().add_(1)
        logits_KV.copy_(slope_KV.mul_(grad_KV).div_(temperature_K[:, None]))
    return logits_KV.to(dtype)


def _scaled(logits_CV: Tensor, temperature_C: Tensor, softcap: float | None) -> Tensor:
    """Compute z = softcap(u) / τ as a new tensor."""
    if softcap is None:
        return logits_CV / temperature_C[:, None]
    capped_CV = logits_CV.to(temperature_C.dtype).div(softcap).tanh_().mul_(softcap)
    return capped_CV.div_(temperature_C[:, None])
