"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): W + scale·B·A with W frozen.

The only file that touches peft. A is [rank, inputs], random at the start; B is [outputs, rank],
zero at the start, so that the policy starts as its base; scale = alpha / rank. Names of
parameters are those of peft: ``X.weight`` becomes ``X.base_layer.weight``, ``X.lora_A.default
.weight`` and ``X.lora_B.default.weight``.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel
from ttrl_kernels import FusedLMHead

from ttrl.models.value_head import ValueHead
from ttrl.settings import Settings
from ttrl.types import UserError

ADAPTER = "default"
"""peft's name for the only adapter."""

INSTALL = "bash scripts/setup.sh lora, or pip install 'peft>=0.18'"


def require_peft() -> None:
    """Raise a UserError unless peft is there."""
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"lora.rank is set, but peft is not installed: {INSTALL}")


def add_adapters(model: PreTrainedModel, settings: Settings) -> None:
    """Freeze ``model`` and put adapters, in float32, beside the layers that the settings name.

    They start from the run's seed alone: on every rank the same.

    Raises:
        UserError: if peft is missing, or if a name in ``lora.targets`` is that of no layer,
            of one that is not linear, or of the output layer.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    lora = settings.lora
    targets = lora.targets
    if not isinstance(targets, str):
        for target in targets:
            _refuse_target(model, target)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        try:
            inject_adapter_in_model(config, model, ADAPTER)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"lora.targets = {targets!r}: {reason}") from error
    if model.get_output_embeddings() is not head:
        raise UserError(
            f"lora.targets = {targets!r} names the output layer, whose log-probs are "
            'computed without its logits: leave it out, as "all-linear" does'
        )
    if isinstance(head, ValueHead):  # it has no base that could be frozen
        head.requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def another_of_its_base(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model without its adapters, with the same frozen weights: not copies of them."""
    from peft.tuners.lora import LoraLayer

    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    other: PreTrainedModel = copy.deepcopy(model, frozen)
    for name, layer in list(other.named_modules()):
        if isinstance(layer, LoraLayer):
            other.set_submodule(name, layer.base_layer)
    if hasattr(other, "peft_config"):
        del other.peft_config  # of adapters that it does not have
    return other


def _refuse_target(model: PreTrainedModel, target: str) -> None:
    """Raise a UserError unless all layers of that name are linear, and there is one.

    Names mean what they mean to peft. It ignores one of several that is misspelt, and gives
    embeddings adapters of another form, which `merged` does not know.
    """
    layers = dict(model.named_modules())
    named = {name: m for name, m in layers.items() if f".{name}".endswith(f".{target}")}
    if not named:
        linear = {
            n.rpartition(".")[2]
            for n, m in layers.items()
            if isinstance(m, torch.nn.Linear) and not isinstance(m, FusedLMHead | ValueHead)
        }
        raise UserError(
            f"lora.targets: no layer is called {target!r}; expected names of linear layers: "
            f"{', '.join(sorted(linear))}"
        )
    for name, layer in named.items():
        if not isinstance(layer, torch.nn.Linear):
            raise UserError(
                f"lora.targets: {target!r} names {name or 'the model'}, of type "
                f"{type(layer).__name__}; expected names of linear layers"
            )


def scale(settings: Settings) -> float:
    """Return the factor of B·A."""
    rank = settings.lora.rank
    return 0.0 if rank is None else settings.lora.alpha / rank


def merged(
    named: Sequence[tuple[str, torch.Tensor]], scale: float
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters by their transformers names, adapters added to what they stand beside.

    Args:
        named: names, peft's or those of transformers, and whole tensors; an adapter's parts must
            be there with its base.
        scale: see `scale`.

    Yields:
        One new tensor at a time, of the base's type, added up in float32; parameters without an
        adapter as they are.
    """
    parts = dict(named)
    for name, tensor in named:
        if ".lora_A." in name or ".lora_B." in name:
            continue
        plain = name.replace(".base_layer.", ".")
        a_RI, b_OR = (parts.get(part) for part in adapter_names(plain))
        if a_RI is not None and b_OR is not None:
            change_OI = b_OR.detach().float() @ a_RI.detach().float()
            tensor = (tensor.detach().float() + scale * change_OI).to(tensor.dtype)
        yield plain, tensor


def adapter_names(weight: str) -> tuple[str, str]:
    """Return what A and B beside the weight of that transformers name are called, if there."""
    module = weight.removesuffix(".weight")
    return f"{module}.lora_A.{ADAPTER}.weight", f"{module}.lora_B.{ADAPTER}.weight"


@contextmanager
def without_adapters(model: PreTrainedModel) -> Iterator[None]:
    """Let the model be its base, to the bit: the adapters' outputs are multiplied by 0.

    Switching them off, as peft can, would make them untrainable meanwhile, and another set of
    layers would run, which ZeRO-3 takes for another model: it would fetch them one by one.
    """
    from peft.tuners.lora import LoraLayer

    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    scales = [layer.scaling[ADAPTER] for layer in layers]
    for layer in layers:
        layer.scaling[ADAPTER] = 0.0
    try:
        yield
    finally:
        for layer, own in zip(layers, scales, strict=True):
            layer.scaling[ADAPTER] = own
