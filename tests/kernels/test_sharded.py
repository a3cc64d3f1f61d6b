"""FusedLMHead under FSDP2, on two processes of which one may have nothing to train on.

With a shard of each weight per process, every forward and backward is a collective: a process that
skipped one would leave the other waiting (DeepSpeed and TRL #7075).
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from ttrl_kernels import FusedLMHead
from ttrl_kernels.loss_math import dense_logprob, policy_loss_reference

RANKS, T, H, V = 2, 12, 8, 37
BATCHES = {
    "both": (1.0, 1.0),
    "one without live rows": (1.0, 0.0),
    "none with live rows": (0.0, 0.0),
    "one without tokens": (1.0, None),
}
SHARDING = ("head alone", "tied")


class Model(nn.Module):
    """Embedding, one layer, output layer."""

    def __init__(self, tied: bool, head: type[nn.Linear] = FusedLMHead) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(V, H)
        self.layer = nn.Linear(H, H)
        self.lm_head = head(H, V, bias=False)
        if tied:
            self.lm_head.weight = self.embedding.weight

    def hidden(self, ids_T: torch.Tensor) -> torch.Tensor:
        return self.layer(self.embedding(ids_T)).tanh()

    def forward(self, ids_T: torch.Tensor, targets_T: torch.Tensor, **options: Any) -> Any:
        return self.lm_head(self.hidden(ids_T), targets_T, **options)


def batch(
    rank: int, live: float | None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """(token ids, targets, keywords of the loss) of a process; no tokens at all for live None."""
    g = torch.Generator().manual_seed(100 + rank)
    tokens = 0 if live is None else T
    ids = torch.randint(V, (tokens,), generator=g)
    targets = torch.randint(V, (tokens,), generator=g)
    weights = torch.rand(tokens, generator=g) * (live or 0)
    keywords = {"advantages_T": torch.randn(tokens, generator=g), "token_weights_T": weights}
    return ids, targets, keywords


def loss_of(
    model: nn.Module,
    use: str,
    ids_T: torch.Tensor,
    targets_T: torch.Tensor,
    keywords: dict[str, torch.Tensor],
) -> torch.Tensor:
    if use == "loss":
        return model(ids_T, targets_T, **keywords).loss
    targets_T = targets_T.masked_fill(keywords["token_weights_T"] == 0, -100)
    out = model(ids_T, targets_T)
    return (out.logp_T * keywords["token_weights_T"]).sum() + out.entropy_T.sum()


def work(rank: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=120),
    )
    gradients = {}
    for sharding in SHARDING:
        model = Model(tied=sharding == "tied")
        if sharding == "head alone":
            fully_shard(model.lm_head)
        fully_shard(model)
        for name, live in BATCHES.items():
            for use in ("loss", "log-probs"):
                loss_of(model, use, *batch(rank, live[rank])).backward()
                gradients[sharding, name, use] = {
                    n: p.grad.full_tensor() for n, p in model.named_parameters()
                }
                model.zero_grad()
    torch.save(gradients, f"{folder}/gradients{rank}")

    model = Model(tied=False)
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    fully_shard(model, mp_policy=half)
    try:
        model(*batch(rank, 1.0)[:2], **batch(rank, 1.0)[2])
    except ValueError as error:
        (folder / f"message{rank}").write_text(str(error))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, (folder,), nprocs=RANKS)
    return folder


class Oracle(nn.Linear):
    """The head in plain PyTorch."""

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor, **keywords: Any) -> Any:
        if keywords:
            return policy_loss_reference(hidden, self.weight, targets, **keywords)
        kept = (targets != -100).nonzero().squeeze(1)
        logp, entropy = dense_logprob(hidden[kept], self.weight, targets[kept])
        zeros = hidden.new_zeros(len(targets))
        pair = zeros.index_put((kept,), logp), zeros.index_put((kept,), entropy)
        return type("Pair", (), dict(zip(("logp_T", "entropy_T"), pair, strict=True)))


@pytest.mark.parametrize("use", ["loss", "log-probs"])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("sharding", SHARDING)
def test_trl_7075_gradients_are_the_mean_over_the_ranks(
    sharding: str, name: str, use: str, folder: Path
) -> None:
    model = Model(tied=sharding == "tied", head=Oracle)
    for rank, live in enumerate(BATCHES[name]):
        (loss_of(model, use, *batch(rank, live)) / RANKS).backward()
    for rank in range(RANKS):
        gradients = torch.load(folder / f"gradients{rank}")[sharding, name, use]
        for parameter, value in model.named_parameters():
            torch.testing.assert_close(gradients[parameter], value.grad, rtol=1e-5, atol=1e-6)
    assert (
        gradients["lm_head.weight" if sharding != "tied" else "embedding.weight"] == 0
    ).all() == (name == "none with live rows")


def test_token_vectors_that_mixed_precision_rounded_are_refused(folder: Path) -> None:
    """FSDP2 casts all that a module receives: old log-probs in bfloat16 are off by percents."""
    message = (folder / "message0").read_text()
    assert "advantages_T is torch.bfloat16 [12] on cpu, expected a float32 or float64" in message
