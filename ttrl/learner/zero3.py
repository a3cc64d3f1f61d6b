"""A trained model under DeepSpeed's ZeRO-3: each rank holds a shard of all an update needs.

With `ttrl.learner.partition`, which loads the shares, the only file that touches DeepSpeed. Weights
and gradients are in ``model.dtype``, the optimizer's copy of the weights and its moments in
float32.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from ttrl.learner.offload import Offload
from ttrl.learner.optimizer import adamw
from ttrl.learner.partition import gathered_layers, load_partitioned, sizes
from ttrl.learner.trained_model import KINDS, TrainedModel, needs_reference
from ttrl.models import lora
from ttrl.models.packed_model import make_packed
from ttrl.models.pretrained import layer_of, load_bare_outline
from ttrl.models.value_head import ValueHead
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks
from ttrl.types import UserError

CONTRACT = (
    "deepspeed.initialize",
    "deepspeed.ops.__compatible_ops__",
    "deepspeed.zero.GatheredParameters",
    "deepspeed.zero.Init",
    "deepspeed.DeepSpeedEngine.backward",
    "deepspeed.DeepSpeedEngine.step",
    "deepspeed.DeepSpeedEngine.empty_partition_cache",
    "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3.zero_grad",
    "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3.set_grad_positions",
    "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3.get_param_id",
)
"""Every symbol of DeepSpeed that is used here and in `ttrl.learner.partition`; its optimizer's
lists of tensors, which are attributes of instances, are not among them."""

REDUCE_BUCKET = 50_000_000
"""Gradients in a buffer; by default 5e8, which are 2 GB, even for a tiny model."""
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
    # DeepSpeed calls torch's collectives by names that are about to change.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)


class Zero3Model(TrainedModel):
    """Shards of a model, and the DeepSpeed engine that gathers them layer by layer."""

    def __init__(
        self,
        model: PreTrainedModel,
        settings: Settings,
        ranks: Ranks,
        reference: PreTrainedModel | None = None,
    ) -> None:
        """Take over ``model``, divided over the ranks or whole on each, and keep a share of it.

        Args:
            model: loaded by `load`, or by `ttrl.models.packed_model.load_policy_model`.
            settings: of the run.
            ranks: who shares.
            reference: the same model once more, where `needs_reference`.

        Raises:
            UserError: if DeepSpeed is missing or of another version.
        """
        require_deepspeed()
        import deepspeed

        if needs_reference(settings) == (reference is None):
            raise ValueError("a reference is needed for a KL term without adapters, and then only")
        config = _config(settings, model)
        self.reference = None
        if reference is not None:
            frozen = self._packed(reference.eval().requires_grad_(False), settings)
            self.reference, *_ = deepspeed.initialize(model=frozen, config=config)
        super().__init__(model, settings, ranks)
        # Adapters and a value head are not divided yet, and may still be float32.
        for parameter in model.parameters():
            if parameter.requires_grad and not hasattr(parameter, "ds_id"):
                parameter.data = parameter.data.to(getattr(torch, settings.model.dtype))
        offloaded = settings.memory.offload_optimizer
        self.engine, *_ = deepspeed.initialize(
            model=self._packed(model, settings),
            optimizer=adamw(
                model, settings.optimizer, fused=offloaded or torch.cuda.is_available()
            ),
            config=config,
        )
        self.network = self.engine
        self._offload = Offload()

    @classmethod
    def load(cls, settings: Settings, ranks: Ranks, *, value_head: bool = False) -> Self:
        """Read the settings' model, and its reference, from the files into the ranks' shares.

        With ``value_head`` it has one in the place of its output layer.

        Raises:
            UserError: on all ranks, see `load_partitioned` and `load_policy_model`.
        """
        require_deepspeed()
        dtype = getattr(torch, settings.model.dtype)
        config = _config(settings, load_bare_outline(settings.model))

        def load() -> PreTrainedModel:
            model = load_partitioned(settings.model, dtype, config, ranks)
            make_packed(
                model,
                settings.model,
                longest=settings.longest,
                liger=settings.memory.liger_kernels,
                whole=gathered_layers(model),
            )
            return model

        reference = load() if needs_reference(settings) else None
        model = load()
        if value_head:
            ValueHead.replace(model)
        return cls(model, settings, ranks, reference)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all parameters, by their transformers names, gathered one layer at a time."""
        import deepspeed

        for _, layer in groupby(self.model.named_parameters(), lambda item: layer_of(item[0])):
            named = list(layer)
            with deepspeed.zero.GatheredParameters([p for _, p in named]):
                # No variable of ours holds them while the next layer is gathered.
                yield from lora.merged(
                    [(name, p.data) for name, p in named], lora.scale(self.settings)
                )

    def offload(self) -> None:
        """Move all but the model's own weights off the GPU; see ``memory.offload_during_rollout``.

        The weights stay, since they are gathered and pushed into the engine meanwhile. Gradients
        of a step that has been taken are worth nothing.
        """
        if not self.settings.memory.offload_during_rollout or self._offload.is_away:
            return
        self.engine.empty_partition_cache()
        optimizer = self.engine.optimizer
        moments = [s[kind] for s in self._adam.state.values() for kind in KINDS[1:]]
        buckets = [b.buffer for b in optimizer.ipg_buckets.values() if b.buffer is not None]
        self._offload.leave(
            [*optimizer.fp32_partitioned_groups_flat, *moments],
            [optimizer.grad_partitions_flat_buffer, *buckets],
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def reload(self) -> None:
        """Move everything to the GPU again."""
        self._offload.come_back()

    def _sizes(self) -> dict[str, int]:
        whole = sizes(self.model)
        return {name: whole[name] for name, _ in self._trained()}

    def shards(self, kinds: Sequence[str] = KINDS) -> dict[str, torch.Tensor]:
        """Copy this rank's part of every trained parameter; the last rank's ends with zeros."""
        return {
            f"{kind}/{name}": self._shard(parameter, kind).detach().to("cpu", copy=True)
            for kind in kinds
            if kind == "weights" or self.steps_taken
            for name, parameter in self._trained()
        }

    @torch.no_grad()
    def load_shards(self, shards: Mapping[str, torch.Tensor]) -> None:
        """Put back what `shards` gave, in the optimizer's copy of the weights and in the model."""
        for _ in self.named_weights():
            pass  # small parameters stay whole after a forward pass: now they are shards again
        for kind in KINDS:
            for name, parameter in self._trained():
                if (shard := shards.get(f"{kind}/{name}")) is None:
                    continue
                own = self._shard(parameter, kind)
                own.copy_(shard)
                if kind == "weights":
                    parameter.ds_tensor[: len(own)].copy_(own)  # type: ignore[attr-defined]

    @property
    def _adam(self) -> torch.optim.Optimizer:
        """The optimizer inside DeepSpeed's, which sees a few flat vectors, not parameters."""
        adam: torch.optim.Optimizer = self.engine.optimizer.optimizer
        return adam

    def _optimized(self) -> Iterable[torch.Tensor]:
        flat: list[torch.Tensor] = self.engine.optimizer.fp32_partitioned_groups_flat
        return flat

    def _shard(self, parameter: torch.nn.Parameter, kind: str) -> torch.Tensor:
        """Return the float32 tensor itself, as the optimizer holds it, wherever that is."""
        optimizer = self.engine.optimizer
        group, begin, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
        flat: torch.Tensor = optimizer.fp32_partitioned_groups_flat[group]
        holder = flat if kind == "weights" else self._adam.state[flat][kind]
        return holder.detach().narrow(0, begin, length)

    def _zero_grad(self) -> None:
        # The engine's own zero_grad leaves the shares, to which the next backward pass would add.
        self.engine.optimizer.zero_grad()

    def _backward(self, loss: torch.Tensor) -> None:
        # DeepSpeed takes the mean over ranks; ours is a sum, with weights that know of all ranks.
        self.engine.backward(loss * self.ranks.count, scale_wrt_gas=False)

    def _gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        # The parts of DeepSpeed's own buffer, which is laid out like this.
        optimizer, begin = self.engine.optimizer, 0
        names = {parameter: name for name, parameter in self._trained()}
        for parameter in chain.from_iterable(optimizer.fp16_groups):
            length = parameter.partition_numel()
            own = optimizer.grad_partitions_flat_buffer.narrow(0, begin, length)
            yield names[parameter], own.to(self.model.device)
            begin += length

    def _apply(self, rate: float, grad_norm: torch.Tensor) -> None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()  # clips by itself, to optimizer.grad_clip


def _without_compiler() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce for CPUs: gloo has one.

    Compiling takes a minute at the first start, and a start that is killed meanwhile leaves a lock
    file behind for which every later one waits without an end.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _config(settings: Settings, model: PreTrainedModel) -> dict[str, Any]:
    """Write DeepSpeed's configuration; we decide ourselves where an optimizer step ends."""
    largest, layer = live_parameters(model)
    zero: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": False,  # with it, DeepSpeed has to manage the accumulation
        "contiguous_gradients": True,
        "reduce_bucket_size": min(REDUCE_BUCKET, sum(sizes(model).values())),
        "sub_group_size": SUB_GROUP,
        # Whole at a time: a layer, and the one that is fetched meanwhile.
        "stage3_max_live_parameters": largest + layer,
        "stage3_prefetch_bucket_size": layer,
        "stage3_max_reuse_distance": layer,
    }
    if settings.memory.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,  # ours are packed to a number of tokens
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": settings.optimizer.grad_clip,
        "bf16": {"enabled": settings.model.dtype == "bfloat16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        "zero_force_ds_cpu_optimizer": False,  # which would be compiled; torch's is as fused
        "steps_per_print": 2**31,
    }


def live_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Count the parameters of the largest of embedding, head and layers, and of a layer."""
    layers: dict[str, int] = {}
    for name, size in sizes(model).items():
        layers[layer_of(name)] = layers.get(layer_of(name), 0) + size
    numbered = [size for name, size in layers.items() if layer_of(f"{name}.") == name]
    return max(layers.values()), max(numbered, default=max(layers.values()))


def _has(symbol: str) -> bool:
    module, _, name = symbol.rpartition(".")
    try:
        found: Any = importlib.import_module(module)
    except ImportError:
        parent, _, attribute = module.rpartition(".")
        found = getattr(importlib.import_module(parent), attribute, None)
    return hasattr(found, name)
