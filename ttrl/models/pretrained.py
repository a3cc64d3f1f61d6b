"""Loading models and tokenizers in the Hugging Face format, from a folder or the hub."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from ttrl.settings import ModelSettings
from ttrl.system.gpus import device
from ttrl.types import UserError

TINY_BASE = Path(__file__).parents[1] / "data" / "tiny_base"

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)
"""Fields that a config file without weights must have: transformers has defaults for all."""

EXPECTED = "expected a folder in the Hugging Face format, a hub name, or tiny-base"

REASON = 300
"""Characters of what transformers says that are shown; some of it lists every model it knows."""

if not torch.cuda.is_available():
    # DeepSpeed looks for an accelerator, and warns if there is none, whoever loads it: transformers
    # does when it saves a model.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
if not sys.stderr.isatty():  # its bars fill a log file with control characters
    transformers_logging.disable_progress_bar()


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer; code that a repository may carry is never run.

    Raises:
        UserError: if there is none, it does not load, or it has no end-of-sequence token.
    """
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, settings)
    if not tokenizer.encode("1 + 1", add_special_tokens=False):
        raise UserError(
            f"the tokenizer of {settings.path} makes no tokens of a text: expected its files "
            "(tokenizer.json, or what its class reads) beside the model; fetch them again"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {settings.path} has no end-of-sequence token")
    return tokenizer


def load_model(settings: ModelSettings, dtype: torch.dtype) -> PreTrainedModel:
    """Load the model, on the GPU if there is one.

    Only safetensors files are read: code or pickles in a repository are never run.
    """
    refuse_files(settings)
    with explained(settings):
        weight_places(settings)
    with device():
        loaded: tuple[PreTrainedModel, dict[str, Any]] = _load(
            AutoModelForCausalLM,
            settings,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
        )
    model, info = loaded
    absent = {*info["missing_keys"], *map(str, info["mismatched_keys"])}
    refuse_incomplete(settings, model, absent, info["unexpected_keys"])
    return model


def weight_places(settings: ModelSettings) -> dict[str, Path]:
    """Find each weight's file, on the hub if need be, by the weight's name in it.

    Raises:
        OSError: if there are none.
        ValueError: if the index of several files is broken, or a weight is in two of them.
    """
    path, options = model_path(settings), {"revision": settings.revision}
    looked: dict[str, Any] = {**options, "_raise_exceptions_for_missing_entries": False}
    if (whole := cached_file(path, SAFE_WEIGHTS_NAME, **looked)) is not None:
        files = [whole]
    elif (index := cached_file(path, SAFE_WEIGHTS_INDEX_NAME, **looked)) is not None:
        places = _object(Path(index)).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
            raise ValueError(
                f"its {SAFE_WEIGHTS_INDEX_NAME} has no weight_map, expected an object with the "
                "file of each weight: fetch that file again"
            )
        files, _ = get_checkpoint_shard_files(path, index, **options)
    else:
        raise OSError(f"it has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}")
    found: dict[str, Path] = {}
    for file in map(Path, files):
        with safe_open(file, "pt") as names:
            for name in names.keys():  # noqa: SIM118
                if name in found:
                    raise ValueError(
                        f"{name} is in {found[name].name} and in {file.name}, expected in one "
                        "file: which of them counts?"
                    )
                found[name] = file
    return found


def refuse_incomplete(
    settings: ModelSettings, model: PreTrainedModel, absent: Set[str], extra: Set[str]
) -> None:
    """Raise a UserError unless the weights are exactly the model's.

    With absent ones transformers would go on at random. Of others, those that a model says it can
    ignore are left out.
    """
    if absent:
        raise UserError(
            f"model.path = {settings.path!r} lacks {len(absent)} weights of a "
            f"{type(model).__name__}, for example {min(absent)}; expected a complete causal LM"
        )
    if extra:
        raise UserError(
            f"model.path = {settings.path!r} holds {len(extra)} weights for which a "
            f"{type(model).__name__} of its config.json has no place, for example {min(extra)}; "
            "expected the config.json that belongs to the weights"
        )


def load_outline(settings: ModelSettings, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load the model without its weights: names, shapes, configuration and stop tokens."""
    model = load_bare_outline(settings, dtype)
    # If there is none, what the model's own config says; a broken file was refused above.
    with explained(settings), contextlib.suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(
            model_path(settings), revision=settings.revision or "main"
        )
    return model


def load_bare_outline(
    settings: ModelSettings, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load the model without its weights and its stop tokens.

    ``settings.path`` may also be a model's config file.
    """
    refuse_files(settings)
    config: PreTrainedConfig = _load(AutoConfig, settings)
    with explained(settings), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
        )
    return model


def refuse_files(settings: ModelSettings) -> None:
    """Raise a UserError for settings of a model on this machine that transformers would believe.

    A config.json may name attention code on the hub, which it would fetch and run; without sizes,
    it would plan a model of its own; it goes on without a generation_config.json, and the stop
    tokens in it, if that is broken. On the hub, it reads them, and our attn_implementation goes
    first.
    """
    path = Path(model_path(settings))
    config = path if path.is_file() else path / "config.json"
    values = _object(config)
    for key, value in values.items():
        if "attn_implementation" in key and isinstance(value, str) and "/" in value:
            raise UserError(f"{config}: {key} = {value!r} names code on the hub; remove it")
    if path.is_file():
        if absent := [size for size in SIZES if size not in values]:
            raise UserError(f"{config} has no {', '.join(absent)}; expected a model's config.json")
    else:
        _object(path / "generation_config.json")


def _object(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file; empty if there is no file."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings: expected a JSON object")
    return values


@dataclass(frozen=True)
class Room:
    """Room for tokens: how many prompt and answer may have together."""

    tokens: int
    why: str = ""
    """The field that sets the limit, where it is not simply the number of positions."""


def context_room(model: PreTrainedModel) -> Room | None:
    """Find up to what length a model can be sampled from and trained; None without a limit.

    Beyond some lengths a result depends on the longest sequence of a batch: a packed batch would
    mix them, keys in a cache would be of the earlier kind, and vLLM decides by its own longest.
    """
    config = model.config.get_text_config()
    positions: int | None = getattr(config, "max_position_embeddings", None)
    found = []
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        found.append(Room(config.attention_chunk_size, " (attention_chunk_size)"))
    ropes: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    for rope in [r for r in ropes.values() if isinstance(r, dict)] or [ropes]:  # by type of layer
        kind, beyond = rope.get("rope_type", ""), "has other factors for longer sequences"
        if kind == "longrope":
            name = "original_max_position_embeddings"
            found.append(Room(rope[name], f" ({name}: rope_type = {kind!r} {beyond})"))
        if "dynamic" in kind and positions is not None:
            found.append(Room(positions, f" (rope_type = {kind!r} {beyond})"))
    if positions is not None:
        found.append(Room(positions))
    return min(found, key=lambda room: room.tokens, default=None)


def layer_of(name: str) -> str:
    """Return a parameter's name up to the number of its layer; all of it outside of layers."""
    numbered = re.match(r".*?\.\d+(?=\.)", name)
    return numbered[0] if numbered else name


def model_path(settings: ModelSettings) -> str:
    """Return the folder or hub name that ``settings`` mean."""
    return str(TINY_BASE) if settings.path == "tiny-base" else settings.path


def _load(auto_class: Any, settings: ModelSettings, **options: Any) -> Any:
    with explained(settings):
        return auto_class.from_pretrained(
            model_path(settings), revision=settings.revision, trust_remote_code=False, **options
        )


@contextlib.contextmanager
def explained(settings: ModelSettings) -> Iterator[None]:
    """Turn whatever goes wrong into a UserError: a broken model fails in many ways."""
    try:
        yield
    except UserError:  # it says already what there is to say
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        if not isinstance(error, OSError | ValueError):  # a KeyError is only the key
            reason = f"{type(error).__name__}: {reason}"
        reason = reason if len(reason) <= REASON else f"{reason[:REASON]}..."
        trained = Path(settings.path) / "model"
        hint = f"did you mean {trained}?" if (trained / "config.json").is_file() else EXPECTED
        raise UserError(f"cannot load model.path = {settings.path!r}: {reason} ({hint})") from error
