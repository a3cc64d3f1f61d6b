"""What is compared: one GRPO loss, computed by every implementation that is installed.

A case is B sequences of equal length with one advantage each, so that Liger's loss, which knows
sequences, and the others, which know tokens, are the same number with the same gradients. Ratios
stay inside the clip, so that exactly the asked share of rows is without a gradient: tokens here and
there whose advantage is 0, which is harder to skip than whole sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from ttrl_kernels import linear_logprob, linear_policy_loss
from ttrl_kernels.loss_math import dense_logprob, policy_loss_reference

CLIP = 0.2


@dataclass(frozen=True)
class Shape:
    """Of one case; ``zeros`` is the share of rows without a gradient."""

    tokens: int
    hidden: int
    vocabulary: int
    dtype: torch.dtype
    zeros: float = 0.0
    sequences: int = 8

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        zeros = f", {self.zeros:.0%} zero-gradient rows" if self.zeros else ""
        return f"{self.tokens} x {self.hidden} x {self.vocabulary} {name}{zeros}"


@dataclass(frozen=True)
class Case:
    """The tensors of a shape."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    advantages: Tensor
    token_weights: Tensor
    old_logp: Tensor
    sequences: int


@dataclass(frozen=True)
class Truth:
    """float64 results, kept in float32 to save memory: far more exact than any contender."""

    logp: Tensor
    hidden: Tensor
    weight: Tensor


def make_case(shape: Shape, device: str) -> Case:
    """Random, with logits of spread 2.5."""
    g = torch.Generator(device).manual_seed(0)
    normal = partial(torch.randn, generator=g, device=device)
    length = shape.tokens // shape.sequences
    if length * shape.sequences != shape.tokens:
        raise ValueError(f"{shape.tokens} tokens are not {shape.sequences} equal sequences")
    hidden = normal(shape.tokens, shape.hidden).to(shape.dtype)
    weight = normal(shape.vocabulary, shape.hidden).mul_(2.5 / shape.hidden**0.5).to(shape.dtype)
    targets = torch.randint(shape.vocabulary, (shape.tokens,), generator=g, device=device)
    signs = torch.where(normal(shape.sequences) < 0, -1.0, 1.0)
    advantages = signs.repeat_interleave(length)
    order = torch.randperm(shape.tokens, generator=g, device=device)
    advantages[order[: round(shape.zeros * shape.tokens)]] = 0
    noise = normal(shape.tokens).mul_(0.05).clamp_(-0.1, 0.1)
    with torch.no_grad():
        logp = [
            dense_logprob(h.float(), weight.float(), y)[0]
            for h, y in zip(hidden.split(1024), targets.split(1024), strict=True)
        ]
    return Case(
        hidden.requires_grad_(),
        weight.requires_grad_(),
        targets,
        advantages,
        torch.full((shape.tokens,), 1 / shape.tokens, device=device),
        torch.cat(logp) + noise,
        shape.sequences,
    )


def solve(case: Case, rows: int = 512) -> Truth:
    """The oracle in float64, some rows at a time: its loss is a sum over tokens."""
    weight = case.weight.detach().double().requires_grad_()
    logp, grad_hidden, grad_weight = [], [], torch.zeros_like(weight)
    for start in range(0, len(case.targets), rows):
        part = slice(start, start + rows)
        hidden = case.hidden[part].detach().double().requires_grad_()
        result = policy_loss_reference(
            hidden,
            weight,
            case.targets[part],
            advantages_T=case.advantages[part].double(),
            token_weights_T=case.token_weights[part].double(),
            old_logp_T=case.old_logp[part].double(),
        )
        grad_h, grad_w = torch.autograd.grad(result.loss, (hidden, weight))
        logp.append(result.logp_T.float())
        grad_hidden.append(grad_h.float())
        grad_weight += grad_w
    return Truth(torch.cat(logp), torch.cat(grad_hidden), grad_weight.float())


def loss_of_logp(logp: Tensor, case: Case) -> Tensor:
    """Clipped policy loss from log-probs: what trainers write in plain PyTorch."""
    ratio = torch.exp(logp - case.old_logp)
    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
    objective = torch.minimum(ratio * case.advantages, clipped * case.advantages)
    return -(objective * case.token_weights).sum()


# --- the contenders: a function of a case that gives log-probs, and one that gives the loss


def plain_logp(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Nothing is computed here but the log-probs: the entropy would make it slower."""
    logits = F.linear(hidden, weight).float()
    return torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1)


def plain_with_entropy(case: Case) -> Tensor:
    """The same results as ours, entropy included: the oracle run in the inputs' own dtype."""
    return _grpo(policy_loss_reference, case)


def ours_loss(case: Case) -> Tensor:
    return _grpo(linear_policy_loss, case)


def _grpo(policy_loss: Callable[..., Any], case: Case) -> Tensor:
    loss: Tensor = policy_loss(
        case.hidden,
        case.weight,
        case.targets,
        advantages_T=case.advantages,
        token_weights_T=case.token_weights,
        old_logp_T=case.old_logp,
    ).loss
    return loss


def torch_chunked(case: Case) -> Tensor:
    loss: Any = F.linear_cross_entropy  # type: ignore[attr-defined, unused-ignore]
    options = torch.nn.LinearCrossEntropyOptions()
    return -loss(case.hidden, case.weight, case.targets, reduction="none", options=options)


def cce(case: Case) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(case.hidden, case.weight, case.targets, reduction="none")


def trl(case: Case) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as chunk

    h, w, y = case.hidden, case.weight, case.targets
    return ChunkedLogProbFunction.apply(h, w, None, y, 1.0, chunk, None, 1.0, ())[0]


def verl(case: Case) -> Tensor:
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    h, w, y = case.hidden, case.weight, case.targets
    return linear_cross_entropy(h, w, y, 1.0, "none")[0]


@cache
def _liger() -> Any:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    return LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type="grpo")


def liger_loss(case: Case, tf32: bool = False) -> Tensor:
    def grouped(x: Tensor) -> Tensor:
        return x.view(case.sequences, -1, *x.shape[1:])

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        loss, _ = _liger()(
            grouped(case.hidden),
            case.weight,
            grouped(case.targets),
            torch.ones_like(grouped(case.targets)),
            grouped(case.advantages)[:, 0],
            old_per_token_logps=grouped(case.old_logp),
        )
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return loss


@dataclass(frozen=True)
class Contender:
    """Either function may be absent; ``where`` is the only type of device it runs on."""

    logp: Callable[[Case], Tensor] | None
    loss: Callable[[Case], Tensor]
    where: str | None = None


def _of_logp(logp: Callable[[Case], Tensor], where: str | None = None) -> Contender:
    return Contender(logp, lambda case: loss_of_logp(logp(case), case), where)


def _on_tensors(function: Callable[..., Tensor]) -> Callable[[Case], Tensor]:
    return lambda case: function(case.hidden, case.weight, case.targets)


CONTENDERS = {
    "ttrl_kernels": Contender(_on_tensors(lambda *t: linear_logprob(*t).logp_T), ours_loss),
    "plain PyTorch": _of_logp(_on_tensors(plain_logp)),
    "plain PyTorch, with entropy": Contender(
        _on_tensors(lambda *t: dense_logprob(*t)[0]), plain_with_entropy
    ),
    "torch.compile": _of_logp(_on_tensors(torch.compile(plain_logp))),
    "F.linear_cross_entropy": _of_logp(torch_chunked),
    "Liger GRPO": Contender(None, liger_loss),
    "Liger GRPO, TF32": Contender(None, partial(liger_loss, tf32=True), "cuda"),
    "cut-cross-entropy": _of_logp(cce, "cuda"),
    "TRL chunked": _of_logp(trl),
    "verl": _of_logp(verl, "cuda"),
}


def floor(case: Case, backward: bool) -> Callable[[], None]:
    """The bare matmuls: one forward, two more backward; outputs are allocated beforehand."""
    hidden, weight = case.hidden.detach(), case.weight.detach()
    logits = hidden @ weight.t()
    grad_hidden, grad_weight = torch.empty_like(hidden), torch.empty_like(weight)

    def matmuls() -> None:
        torch.mm(hidden, weight.t(), out=logits)
        if backward:
            torch.mm(logits, weight, out=grad_hidden)
            torch.mm(logits.t(), hidden, out=grad_weight)

    return matmuls
