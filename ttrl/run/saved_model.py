"""A model as a folder in the Hugging Face format, whole or not there."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ttrl.models.weight_files import write_weights


def save_model(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: Iterable[tuple[str, torch.Tensor]],
    card: str | None = None,
) -> None:
    """Make the folder ``path``, a model in the Hugging Face format: whole, or not there.

    Args:
        path: is not there yet.
        model: its configuration.
        tokenizer: saved beside it.
        weights: its parameters by name, one by one, see `write_weights`; tied ones once.
        card: what its README.md says, see `ttrl.run.model_card`; None: it has none.

    Raises:
        OSError: if it cannot be written, for instance because the disk is full.
    """
    model.generation_config = _valid(model.generation_config)
    with tempfile.TemporaryDirectory(
        prefix=f"{path.name}.", suffix=".tmp", dir=path.parent
    ) as beside:
        temporary = Path(beside) / path.name  # not ``beside`` itself, which nobody else may read
        try:
            model.config.architectures = [type(model).__name__]
            model.config.dtype = model.dtype
            model.config.save_pretrained(temporary)
            model.generation_config.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            write_weights(temporary, model, weights)
            if card is not None:
                (temporary / "README.md").write_text(card, encoding="utf-8")
        except SafetensorError as error:  # what a full disk becomes
            raise OSError(f"cannot write the model to {temporary}: {error}") from error
        temporary.rename(path)


def _valid(generation: GenerationConfig) -> GenerationConfig:
    """Return the configuration, or what transformers is willing to save of it.

    It loads values that are without effect, such as a temperature beside ``do_sample: false``, and
    refuses to save them, when the model has been trained. With ``do_sample`` they stay what other
    engines read them for, which do not look at it. If that is not enough, the stop tokens remain.
    """
    sampling = copy.deepcopy(generation)
    sampling.do_sample = True
    for config in (generation, sampling):
        with suppress(ValueError):
            config.validate(strict=True)
            return config
    return GenerationConfig(
        bos_token_id=generation.bos_token_id, eos_token_id=generation.eos_token_id
    )
