"""A model divided over the ranks while it is loaded: no rank holds all of it at any time.

With `ttrl.learner.zero3` the only file that touches DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from ttrl.models.pretrained import layer_of, load_outline
from ttrl.models.weight_files import WeightFiles
from ttrl.settings import ModelSettings
from ttrl.system.gpus import device
from ttrl.system.ranks import Ranks


def partitioned(
    model: PreTrainedModel, files: WeightFiles | None, config: Mapping[str, Any], ranks: Ranks
) -> None:
    """Give an outline its weights and buffers: rank 0 reads one at a time, each rank keeps a share.

    Args:
        model: without weights (`load_outline`), in the type that they shall have.
        files: what rank 0 reads; None on the others.
        config: DeepSpeed's.
        ranks: who shares.
    """
    import deepspeed

    made: dict[torch.nn.Parameter, torch.nn.Parameter] = {}  # tied ones are made once
    for prefix, module in model.named_modules():
        for own, outline in list(module.named_parameters(recurse=False)):
            if outline not in made:
                whole = torch.empty_like(outline, device=device())
                if files is not None:
                    whole.copy_(files.read(f"{prefix}.{own}".removeprefix(".")))
                parameter = torch.nn.Parameter(whole)
                # Sends it to all ranks, whose shares are what is left of it.
                deepspeed.zero.Init(
                    module=torch.nn.ParameterList([parameter]), config_dict_or_path=dict(config)
                )
                made[outline] = parameter
                del whole
            module.register_parameter(own, made[outline])
    _fill_buffers(model, files, ranks)


def load_partitioned(
    settings: ModelSettings, dtype: torch.dtype, config: Mapping[str, Any], ranks: Ranks
) -> PreTrainedModel:
    """Load what `load_model` gives, divided over the ranks; rank 0 alone reads the weights.

    Raises:
        UserError: on all ranks, if the files do not hold exactly the model's weights.
    """
    model = load_outline(settings, dtype)
    found: list[WeightFiles] = []
    ranks.on_rank_zero(lambda: found.append(WeightFiles(settings, model)))
    partitioned(model, found[0] if found else None, config, ranks)
    model.eval()
    return model


def _fill_buffers(model: PreTrainedModel, files: WeightFiles | None, ranks: Ranks) -> None:
    """Fill the saved buffers from the files, and the others as the model makes them."""
    saved = model.state_dict().keys()
    for name, outline in list(model.named_buffers()):
        place, _, own = name.rpartition(".")
        module = model.get_submodule(place)
        buffer = torch.empty_like(outline, device=device())
        if name in saved:
            buffer.copy_(ranks.on_rank_zero(partial(_read, files, name)))
            buffer._is_hf_initialized = True  # type: ignore[attr-defined]
        module._buffers[own] = buffer
        module._is_hf_initialized = False  # type: ignore[assignment]
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    model.initialize_weights()  # as from_pretrained: what is not yet initialized


def _read(files: WeightFiles | None, name: str) -> torch.Tensor:
    assert files is not None, "only rank 0 reads"
    return files.read(name)


def sizes(model: torch.nn.Module) -> dict[str, int]:
    """Count the numbers of each parameter, whole, by name; tied ones once."""
    return {name: getattr(p, "ds_numel", p.numel()) for name, p in model.named_parameters()}


@contextmanager
def gathered_layers(model: PreTrainedModel) -> Iterator[None]:
    """Let each layer of a divided model have its whole weights while it runs, and no longer."""
    import deepspeed

    layers: dict[str, list[torch.nn.Parameter]] = {}
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own:
            layers.setdefault(layer_of(f"{name}.").removesuffix("."), []).extend(own)
    running: dict[torch.nn.Module, Any] = {}

    def gather(module: torch.nn.Module, *_: object) -> None:
        running[module] = deepspeed.zero.GatheredParameters(parameters[module])
        running[module].__enter__()

    def release(module: torch.nn.Module, *_: object) -> None:
        running.pop(module).__exit__(None, None, None)

    parameters = {model.get_submodule(name): own for name, own in layers.items()}
    with ExitStack() as hooks:
        for module in parameters:
            hooks.enter_context(_removed(module.register_forward_pre_hook(gather)))
            hooks.enter_context(_removed(module.register_forward_hook(release)))
        yield


@contextmanager
def _removed(hook: Any) -> Iterator[None]:
    """Remove the hook at the end of the context."""
    try:
        yield
    finally:
        hook.remove()
