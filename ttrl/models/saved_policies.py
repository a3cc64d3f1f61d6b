"""Reads the policies that a run of several agents has left, one folder for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from ttrl.models.pretrained import load_outline
from ttrl.models.weight_files import WeightFiles
from ttrl.settings import ModelSettings
from ttrl.types import UserError


class SavedPolicy:
    """Reads the weights of a policy that a run has left in a folder."""

    def __init__(self, model: ModelSettings) -> None:
        """Find the files of the model.

        Raises:
            UserError: if they are not those of one.
        """
        self._files = WeightFiles(model, load_outline(model))

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all parameters, by their transformers names; tied ones once."""
        return self._files.parameters()


def saved_policies(model: ModelSettings, count: int) -> tuple[SavedPolicy, ...]:
    """Find the policies of so many agents: the first, which is ``RUN/model``, and those beside it.

    Raises:
        UserError: if they are not there.
    """
    first = Path(model.path)
    folders = [first, *(first.parent / f"agent_{number}" for number in range(1, count))]
    absent = [folder for folder in folders if not (folder / "config.json").is_file()]
    if absent or first.name != "model":
        raise UserError(
            f'rollout.policies = "per_agent" measures {count} models: expected RUN/model of a run '
            f"that has trained them, with {', '.join(f.name for f in folders[1:])} beside it, got "
            f"{model.path!r}; with --set rollout.policies=shared it speaks for all agents"
        )
    paths = [model.model_copy(update={"path": str(folder)}) for folder in folders]
    return tuple(map(SavedPolicy, paths))
