"""The safetensors files of a model in the Hugging Face format, read and written part by part.

A reader holds one parameter at a time and a writer one file: models may be larger than any memory
that they pass through.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.loading_report import LoadStateDictInfo

from ttrl.models.pretrained import explained, layer_of, refuse_incomplete, weight_places
from ttrl.settings import ModelSettings
from ttrl.types import UserError

FILE_BYTES = 2**30
"""A model that is larger is written into several files, of about this size, or one layer's."""


@dataclass(frozen=True)
class _Source:
    """The source of a parameter: what it is made from."""

    key: str
    """The model's name of the first of all parameters that are made from the same."""
    converter: WeightConverter | None
    """How the parameter is made, if it is not simply what is in the file."""
    parts: list[tuple[str, str | None]] = field(default_factory=list)
    """The names in the files, and which of the converter's patterns each of them matches."""


class WeightFiles:
    """The files of a model, and where each parameter is in them."""

    def __init__(self, settings: ModelSettings, outline: PreTrainedModel) -> None:
        """Find the files, on the hub if need be, and compare what they hold with ``outline``.

        Raises:
            UserError: if there are none, one cannot be read, or they do not hold exactly the
                model's weights.
        """
        self.outline = outline
        self._sources: dict[str, _Source] = {}
        if getattr(outline.config, "quantization_config", None) is not None:
            raise UserError(
                f"model.path = {settings.path!r} is quantized; expected one that is not"
            )
        with explained(settings):
            self._files = weight_places(settings)
            shapes = self._find_sources()
        refuse_incomplete(settings, outline, *self._differences(shapes))
        for twin, own in outline.all_tied_weights_keys.items():
            if {twin, own} <= shapes.keys() and not torch.equal(self.read(twin), self.read(own)):
                raise UserError(
                    f"model.path = {settings.path!r} ties {twin} to {own}, but holds both, and "
                    'they differ; expected "tie_word_embeddings": false in its config.json'
                )

    def read(self, name: str) -> torch.Tensor:
        """Read a parameter or buffer, in the type that it has in the file."""
        source = self._sources[name]
        return self._convert(source, {part: self._load(part) for part, _ in source.parts})[name]

    def parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all parameters, in the order in which the model has them; tied ones once."""
        return ((name, self.read(name)) for name, _ in self.outline.named_parameters())

    def _find_sources(self) -> dict[str, torch.Size]:
        """Set ``_sources`` as transformers would; return the shapes of all that can be read."""
        mapping = get_model_conversion_mapping(self.outline)
        renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
        converters = [m for m in mapping if isinstance(m, WeightConverter)]
        by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
        expected = self.outline.state_dict()
        options = (self.outline.base_model_prefix, expected)
        sources: dict[str, _Source] = {}
        outlines: dict[str, torch.Tensor] = {}
        for path in sorted(set(self._files.values())):
            with safe_open(path, "pt") as file:
                for part in file.keys():  # noqa: SIM118
                    outlines[part] = torch.empty(file.get_slice(part).get_shape(), device="meta")
        for part in sorted(outlines):
            key, pattern = rename_source_key(part, renamings, converters, *options)
            if key not in expected and part in expected:
                key, pattern = rename_source_key(part, [], [], *options)
            converter = None if pattern is None else by_pattern[pattern]
            source = sources.setdefault(key, _Source(key, converter))
            source.parts.append((part, pattern))
        shapes: dict[str, torch.Size] = {}
        for source in sources.values():
            made = self._convert(source, outlines)
            shapes |= {name: tensor.shape for name, tensor in made.items()}
            self._sources |= dict.fromkeys(made, source)
        for twin, own in self.outline.all_tied_weights_keys.items():
            for one, other in ((twin, own), (own, twin)):
                if one not in self._sources and other in self._sources:
                    self._sources[one] = _Source(one, None, self._sources[other].parts)
        return shapes

    def _convert(self, source: _Source, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Make the model's tensors of these of the files, by the model's names."""
        if source.converter is None:
            return {source.key: parts[source.parts[0][0]]}
        converter: Any = copy.deepcopy(source.converter)
        for part, pattern in source.parts:
            converter.add_tensor(source.key, part, pattern, parts[part])
        made = converter.convert(source.key, model=self.outline, config=self.outline.config)
        return {name: t[0] if isinstance(t, list) else t for name, t in made.items()}

    def _differences(self, shapes: dict[str, torch.Size]) -> tuple[set[str], set[str]]:
        """Name what is missing or of another shape; and what has no place, unless to be ignored."""
        expected = {name: tensor.shape for name, tensor in self.outline.state_dict().items()}
        wrong = {name for name in shapes.keys() & expected if shapes[name] != expected[name]}
        info = LoadStateDictInfo(
            missing_keys=expected.keys() - self._sources.keys(),
            unexpected_keys=shapes.keys() - expected.keys(),
            mismatched_keys=set(),
            error_msgs=[],
            conversion_errors={},
            skipped_pp_keys=set(),
        )
        self.outline._adjust_missing_and_unexpected_keys(info)
        return info.missing_keys | wrong, info.unexpected_keys

    def _load(self, part: str) -> torch.Tensor:
        """Load a tensor by its name in the files: a copy, so that the file is unmapped again."""
        with safe_open(self._files[part], "pt") as file:
            tensor: torch.Tensor = file.get_tensor(part).clone()
        return tensor


def write_weights(
    folder: Path, model: PreTrainedModel, weights: Iterable[tuple[str, torch.Tensor]]
) -> None:
    """Write ``weights``, by the names that ``model`` has for them, under those of its format.

    At most one file and one layer are in memory, beside what the iterable itself holds.
    """
    waiting: dict[str, torch.Tensor] = {}
    files: list[list[str]] = []
    sizes = []

    def write() -> None:
        save_file(waiting, folder / f"{len(files)}.tmp", {"format": "pt"})
        files.append(list(waiting))
        sizes.append(_bytes(waiting))
        waiting.clear()

    for _, named in groupby(weights, lambda item: layer_of(item[0])):
        own = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in named}
        layer = revert_weight_conversion(model, own)
        if waiting and _bytes(waiting) + _bytes(layer) > FILE_BYTES:
            write()
        waiting |= layer
    write()
    if len(files) == 1:
        (folder / "0.tmp").rename(folder / SAFE_WEIGHTS_NAME)
        return
    places: dict[str, str] = {}
    for i, names in enumerate(files):
        file = f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        (folder / f"{i}.tmp").rename(folder / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": places}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")


def _bytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
