"""The policy under DeepSpeed's ZeRO-3: every rank holds a share of all that an update needs.

The only file that touches DeepSpeed. Weights and gradients are in ``model.dtype``, the optimizer's
copy of the weights and its moments in float32.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedModel

from ttrl.config import Settings
from ttrl.policy import lora
from ttrl.policy.update import KINDS, Policy
from ttrl.ranks import Ranks
from ttrl.types import UserError

CONTRACT = (
    "deepspeed.initialize",
    "deepspeed.ops.__compatible_ops__",
    "deepspeed.zero.GatheredParameters",
    "deepspeed.utils.safe_get_local_grad",
    "deepspeed.utils.safe_get_local_fp32_param",
    "deepspeed.utils.safe_get_local_optimizer_state",
    "deepspeed.DeepSpeedEngine.backward",
    "deepspeed.DeepSpeedEngine.step",
    "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3.zero_grad",
    "deepspeed.DeepSpeedEngine.offload_states",
    "deepspeed.DeepSpeedEngine.reload_states",
    "deepspeed.runtime.zero.offload_config.OffloadStateTypeEnum",
)
"""Every symbol of DeepSpeed that is used here."""

LIVE_PARAMETERS = 1_000_000_000
"""So many parameters at most are whole at a time."""
REDUCE_BUCKET = 50_000_000
"""A buffer of so many gradients; by default of 5e8, 2 GB, even for a tiny model."""
SUB_GROUP = 100_000_000
"""Parameters of a share that one call of the optimizer updates: of 1e9, DeepSpeed's default, the
temporary gradient in float32 is 4 GB."""

INSTALL = "bash scripts/setup.sh zero3, or pip install --no-build-isolation 'deepspeed==0.19.8'"


def require_deepspeed() -> None:
    """Raise a UserError unless DeepSpeed is there with all that is used of it."""
    try:
        version = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f'policy.backend = "zero3", but DeepSpeed is not installed: {INSTALL}'
        ) from None
    lost = [symbol for symbol in CONTRACT if not _has(symbol)]
    if lost:
        raise UserError(
            f"DeepSpeed {version} lacks what is used of it here: {', '.join(lost)}; expected "
            f"0.19.8. {INSTALL}"
        )
    _without_compiler()


class Zero3Policy(Policy):
    """Shards of a model, and the DeepSpeed engine that gathers them layer by layer."""

    def __init__(self, model: PreTrainedModel, settings: Settings, ranks: Ranks) -> None:
        """Take over ``model``, whole on every rank, and keep this rank's share.

        Raises:
            UserError: if DeepSpeed is missing or of another version.
        """
        require_deepspeed()
        import deepspeed

        # DeepSpeed calls torch's collectives by names that are about to change.
        warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
        super().__init__(model, settings, ranks)
        self.reference = self._frozen_copy()
        if self.reference is not None:
            self.reference, *_ = deepspeed.initialize(
                model=self.reference, config=_config(settings, model)
            )
        self.engine, *_ = deepspeed.initialize(
            model=self._packed(model),
            optimizer=_optimizer(model, settings),
            config=_config(settings, model),
        )
        self.network = self.engine

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All parameters, by their transformers names, gathered one layer at a time."""
        import deepspeed

        for _, layer in groupby(self.model.named_parameters(), lambda item: _layer(item[0])):
            named = list(layer)
            with deepspeed.zero.GatheredParameters([p for _, p in named]):
                whole = [(name, p.data) for name, p in named]
                yield from lora.merged(whole, lora.scale(self.settings))

    def make_room(self) -> None:
        """With ``policy.offload_during_rollout``: all but the model's own weights leaves the GPU.

        Those stay, since they are gathered and pushed into the engine meanwhile.
        """
        if self.settings.policy.offload_during_rollout:
            from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as Kind

            kinds = (Kind.optim_states, Kind.hp_params, Kind.lp_grads, Kind.contiguous_grad_buffer)
            self.engine.offload_states(include=kinds, pin_memory=True, non_blocking=False)
            torch.cuda.empty_cache()

    def come_back(self) -> None:
        """Everything to the GPU again."""
        if self.settings.policy.offload_during_rollout:
            self.engine.reload_states()

    def sizes(self) -> dict[str, int]:
        """Of all that is trained: the rest never changes."""
        return {name: p.ds_numel for name, p in self._trained()}  # type: ignore[attr-defined]

    def shares(self, kinds: Sequence[str] = KINDS) -> dict[str, torch.Tensor]:
        """This rank's part of every trained parameter; the last rank's has zeros behind it."""
        return {
            f"{kind}/{name}": _share(parameter, kind).detach().to("cpu", copy=True)
            for kind in kinds
            if kind == "weights" or self._adam.state
            for name, parameter in self._trained()
        }

    @torch.no_grad()
    def load_shares(self, shares: Mapping[str, torch.Tensor]) -> None:
        """Put `shares` back, in the optimizer's copy of the weights and in those of the model."""
        for _ in self.named_weights():
            pass  # small parameters stay whole after a forward pass: now they are shares again
        self._make_moments()
        for kind in KINDS:
            for name, parameter in self._trained():
                if (share := shares.get(f"{kind}/{name}")) is None:
                    continue
                own = _share(parameter, kind)
                own.copy_(share)
                if kind == "weights":
                    parameter.ds_tensor[: len(own)].copy_(own)  # type: ignore[attr-defined]

    @property
    def _adam(self) -> torch.optim.Optimizer:
        """The optimizer inside DeepSpeed's: it sees a few flat vectors, not parameters."""
        adam: torch.optim.Optimizer = self.engine.optimizer.optimizer
        return adam

    def _make_moments(self) -> None:
        """What the optimizer itself makes in its first step."""
        counts_in_tensors = isinstance(self._adam, torch.optim.AdamW)
        for flat in self.engine.optimizer.fp32_partitioned_groups_flat:
            if not self._adam.state[flat]:
                self._adam.state[flat] = {
                    "step": torch.tensor(0.0) if counts_in_tensors else 0,
                    "exp_avg": torch.zeros_like(flat),
                    "exp_avg_sq": torch.zeros_like(flat),
                }

    @property
    def steps_taken(self) -> int:
        """Optimizer steps so far."""
        return max((int(state["step"]) for state in self._adam.state.values()), default=0)

    @steps_taken.setter
    def steps_taken(self, steps: int) -> None:
        for state in self._adam.state.values():
            if torch.is_tensor(state["step"]):
                state["step"].fill_(steps)
            else:
                state["step"] = steps

    def _zero_grad(self) -> None:
        # The engine's own zero_grad leaves the shares, to which the next backward pass would add.
        self.engine.optimizer.zero_grad()

    def _backward(self, loss: torch.Tensor) -> None:
        # DeepSpeed takes the mean over ranks; ours is a sum, with weights that know of all ranks.
        self.engine.backward(loss * self.ranks.count, scale_wrt_gas=False)

    def _gradients(self) -> dict[str, torch.Tensor]:
        from deepspeed.utils import safe_get_local_grad

        grads = {n: safe_get_local_grad(p) for n, p in self.model.named_parameters()}
        return {name: grad for name, grad in grads.items() if grad is not None}

    def _apply(self, rate: float, grad_norm: torch.Tensor) -> None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()  # clips by itself, to policy.grad_clip


def _without_compiler() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce for CPUs: gloo has one.

    That takes a minute at the first start, and a start that is killed meanwhile leaves a lock file
    behind for which every later one waits without an end.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _config(settings: Settings, model: PreTrainedModel) -> dict[str, Any]:
    """DeepSpeed's configuration; we decide ourselves where an optimizer step ends."""
    policy = settings.policy
    numbers = sum(p.numel() for p in model.parameters())
    return {
        "train_micro_batch_size_per_gpu": 1,  # ours are packed to a number of tokens
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": policy.grad_clip,
        "bf16": {"enabled": settings.model.dtype == "bfloat16"},
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": False,  # with it, DeepSpeed has to manage the accumulation
            "contiguous_gradients": True,
            "reduce_bucket_size": min(REDUCE_BUCKET, numbers),
            "sub_group_size": SUB_GROUP,
            "stage3_max_live_parameters": LIVE_PARAMETERS,
        },
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        "steps_per_print": 2**31,
    }


def _optimizer(model: PreTrainedModel, settings: Settings) -> torch.optim.Optimizer:
    """AdamW; DeepSpeed's own where its state has to leave the GPU between updates.

    That one is compiled when it is first used, and needs CUDA's compiler.
    """
    policy = settings.policy
    parameters = [p for p in model.parameters() if p.requires_grad]
    options: dict[str, Any] = {
        "lr": policy.learning_rate,
        "betas": policy.betas,
        "weight_decay": policy.weight_decay,
    }
    if policy.offload_during_rollout:
        from deepspeed.ops.adam import FusedAdam

        fused: torch.optim.Optimizer = FusedAdam(parameters, adam_w_mode=True, **options)
        return fused
    return torch.optim.AdamW(parameters, **options)


def _share(parameter: torch.nn.Parameter, kind: str) -> torch.Tensor:
    """The float32 tensor itself, as the optimizer holds it."""
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    share: torch.Tensor = (
        safe_get_local_fp32_param(parameter)
        if kind == "weights"
        else safe_get_local_optimizer_state(parameter, kind)
    )
    return share


def _layer(name: str) -> str:
    """The part of a parameter's name up to the number of its layer: what is gathered together."""
    numbered = re.match(r".*?\.\d+(?=\.)", name)
    return numbered[0] if numbered else name


def _has(symbol: str) -> bool:
    module, _, name = symbol.rpartition(".")
    try:
        found: Any = importlib.import_module(module)
    except ImportError:
        parent, _, attribute = module.rpartition(".")
        found = getattr(importlib.import_module(parent), attribute, None)
    return hasattr(found, name)
