"""Loading models and tokenizers in the Hugging Face format, from a folder or the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
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
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: PreTrainedModel = _load(
            AutoModelForCausalLM,
            settings,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
        )
    return model


def _load(auto_class: Any, settings: ModelSettings, **options: Any) -> Any:
    path = str(TINY_BASE) if settings.path == "tiny-base" else settings.path
    try:
        return auto_class.from_pretrained(
            path, revision=settings.revision, trust_remote_code=False, **options
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot load model.path = {settings.path!r}: {reason} "
            "(expected a folder in the Hugging Face format, a hub name, or tiny-base)"
        ) from error
