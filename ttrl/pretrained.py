"""Loading models and tokenizers in the Hugging Face format, from a folder or the hub."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from ttrl.config import ModelSettings
from ttrl.types import UserError

TINY_BASE = Path(__file__).parent / "data" / "tiny_base"

if not sys.stderr.isatty():  # its bars fill a log file with control characters
    transformers_logging.disable_progress_bar()


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer; code that a repository may carry is never run."""
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, settings)
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {settings.path} has no end-of-sequence token")
    return tokenizer


def load_model(settings: ModelSettings, dtype: torch.dtype) -> PreTrainedModel:
    """The model, on the GPU if there is one.

    Only safetensors files are read: code or pickles in a repository are never run.
    """
    _refuse_hub_attention(settings)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        loaded: tuple[PreTrainedModel, dict[str, Any]] = _load(
            AutoModelForCausalLM,
            settings,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
        )
    model, info = loaded
    if absent := sorted([*info["missing_keys"], *map(str, info["mismatched_keys"])]):
        # transformers would go on with random weights in their place.
        raise UserError(
            f"model.path = {settings.path!r} lacks {len(absent)} weights of a "
            f"{type(model).__name__}, for example {absent[0]}; expected a complete causal LM"
        )
    return model


def load_outline(settings: ModelSettings) -> PreTrainedModel:
    """The model without its weights: names, shapes, configuration and stop tokens."""
    model = load_bare_outline(settings)
    with contextlib.suppress(OSError):  # there is none: what the model's own config says, then
        model.generation_config = GenerationConfig.from_pretrained(
            model_path(settings), revision=settings.revision or "main"
        )
    return model


def load_bare_outline(settings: ModelSettings) -> PreTrainedModel:
    """The same without the stop tokens: ``settings.path`` may also be a model's config file."""
    _refuse_hub_attention(settings)
    config: PreTrainedConfig = _load(AutoConfig, settings)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", trust_remote_code=False
        )
    return model


def _refuse_hub_attention(settings: ModelSettings) -> None:
    """A config.json may name attention code on the hub, which transformers would fetch and run."""
    path = Path(model_path(settings))
    config = path if path.is_file() else path / "config.json"
    if not config.is_file():
        return  # on the hub: transformers reads it, and our attn_implementation goes first
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{config} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{config} holds no settings: expected a JSON object")
    for key, value in values.items():
        if "attn_implementation" in key and isinstance(value, str) and "/" in value:
            raise UserError(f"{config}: {key} = {value!r} names code on the hub; remove it")


def model_path(settings: ModelSettings) -> str:
    """The folder or hub name that ``settings`` mean."""
    return str(TINY_BASE) if settings.path == "tiny-base" else settings.path


def _load(auto_class: Any, settings: ModelSettings, **options: Any) -> Any:
    try:
        return auto_class.from_pretrained(
            model_path(settings), revision=settings.revision, trust_remote_code=False, **options
        )
    except Exception as error:  # a broken folder fails in many ways, all of them mean the same
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot load model.path = {settings.path!r}: {reason} "
            "(expected a folder in the Hugging Face format, a hub name, or tiny-base)"
        ) from error
