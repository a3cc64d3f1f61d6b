"""A reward model as a folder in the Hugging Face format: its network, and a head of its own.

Only safetensors are read, and no code that a folder or the hub brings is run. Models whose own code
is nothing but a head on a network that transformers knows (Qwen2.5-Math-PRM, Skywork) are read
without it: the network by transformers, the head's weights by name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from ttrl.models.pretrained import REASON, refuse_files, weight_places
from ttrl.settings import ModelSettings, Settings
from ttrl.system.gpus import device
from ttrl.types import UserError

WRAP = "or wrap it in a function of yours, FILE.py:FUNCTION (docs/reward_models.md)"


@dataclass(frozen=True)
class Folder:
    """Where a reward model is, and in which type it computes.

    Example: ``Folder.of("peiyi9979/math-shepherd-mistral-7b-prm", settings)``.
    """

    name: str
    """As the user gave it, with its kind, for messages."""
    model: ModelSettings
    """The folder or hub name, the revision and the type."""

    @classmethod
    def of(cls, path: str, settings: Settings, name: str | None = None) -> Folder:
        """Return the folder ``path`` with what the settings say of it."""
        revision = settings.reward_model.revision
        own = ModelSettings(path=path, revision=revision, dtype=settings.model.dtype)
        return cls(name or path, own)

    @classmethod
    def shipped(cls, name: str, settings: Settings) -> Folder:
        """Return the folder of a model that comes with ttrl."""
        path = Path(__file__).parents[1] / "data" / name.replace("-", "_")
        return cls(name, ModelSettings(path=str(path), dtype=settings.model.dtype))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer, a fast one: it says which token a character is in.

        Raises:
            UserError: if it does not load, or is a slow one.
        """
        tokenizer: PreTrainedTokenizerBase = self._load(AutoTokenizer)
        if not tokenizer.is_fast:
            raise UserError(
                f"the tokenizer of reward model {self.name!r} is a slow one, expected a "
                f"tokenizer.json: convert it with transformers, {WRAP}"
            )
        return tokenizer

    def network(self, kind: Any, *, beside: Sequence[str] = ()) -> PreTrainedModel:
        """Load the network, without a gradient, on the GPU if there is one.

        Args:
            kind: the auto class of transformers, `AutoModel` or one with a head.
            beside: what the names of weights begin with that are read by `tensors`, or not at all.

        Raises:
            UserError: if it needs code of its own, or its weights are not exactly the network's.
        """
        self._refuse_code()
        refuse_files(self.model)
        with device():
            model, info = self._load(
                kind,
                dtype=getattr(torch, self.model.dtype),
                attn_implementation="sdpa",
                use_safetensors=True,
                output_loading_info=True,
            )
        absent = {*info["missing_keys"], *map(str, info["mismatched_keys"])}
        extra = {n for n in info["unexpected_keys"] if not n.startswith(tuple(beside))}
        if absent or extra:
            what, some = ("lacks", absent) if absent else ("has no place for", extra)
            raise UserError(
                f"reward model {self.name!r}: a {type(model).__name__} {what} {len(some)} of its "
                f"weights, for example {min(some)}; is it of the kind that you named? {WRAP}"
            )
        loaded: PreTrainedModel = model.eval().requires_grad_(False)
        return loaded

    def tensors(self, names: Sequence[str], like: PreTrainedModel) -> list[torch.Tensor]:
        """Read the weights of a head, in float32, to where the network is.

        Raises:
            UserError: if there is none of that name.
        """
        places = weight_places(self.model)
        if absent := [name for name in names if name not in places]:
            raise UserError(
                f"reward model {self.name!r} has no weight {absent[0]}, expected "
                f"{', '.join(names)} in its safetensors: is it of the kind that you named? {WRAP}"
            )
        found = []
        for name in names:
            with safe_open(places[name], "pt") as weights:
                found.append(weights.get_tensor(name).float().to(like.device))
        return found

    def _refuse_code(self) -> None:
        """Raise a UserError for a model that only code of its own could compute."""
        config = self._file("config.json")
        try:
            values = {} if config is None else json.loads(Path(config).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"reward model {self.name!r}: {config}: {error}") from error
        if not isinstance(values, dict):
            raise UserError(f"reward model {self.name!r}: {config} is no JSON object")
        if "auto_map" in values and values.get("model_type") not in CONFIG_MAPPING:
            raise UserError(
                f"reward model {self.name!r} is computed by code that it brings (auto_map in its "
                "config.json), which ttrl never runs. Read that code, "
                f"{WRAP.removeprefix('or ')}: the file is yours, and runs with all rights"
            )

    def _file(self, name: str) -> str | None:
        if Path(self.model.path).is_dir():
            path = Path(self.model.path) / name
            return str(path) if path.is_file() else None
        options: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
        try:
            return cached_file(self.model.path, name, revision=self.model.revision, **options)
        except (OSError, ValueError) as error:
            raise self._not_loaded(error) from error

    def _load(self, kind: Any, **options: Any) -> Any:
        try:
            return kind.from_pretrained(
                self.model.path, revision=self.model.revision, trust_remote_code=False, **options
            )
        except Exception as error:  # a broken model fails in many ways
            raise self._not_loaded(error) from error

    def _not_loaded(self, error: Exception) -> UserError:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:REASON]
        return UserError(
            f"cannot load reward model {self.name!r}: {reason} (expected a folder in the Hugging "
            "Face format with safetensors, or a hub name)"
        )
