"""Holds the policies of a run: one that plays all agents, or one for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Self

import torch

from ttrl.learner.backends import make_second_model
from ttrl.learner.objective import Objective
from ttrl.learner.policy_objective import PolicyObjective
from ttrl.learner.trained_model import KINDS, TrainedModel
from ttrl.settings import Settings
from ttrl.types import TrainSample, UpdateResult

FIRST = "policy"
"""Name of the first one; the others are called ``agent_1`` and so on, by their number."""


class Policies:
    """The policies of a run, each of which is trained on what it has written, and on nothing else.

    Where there are several, at most one at a time has its optimizer's state on the GPU.
    """

    def __init__(self, models: Sequence[TrainedModel], objectives: Sequence[Objective]) -> None:
        """Take over one model and one objective for each policy, in the order of their numbers."""
        names = [FIRST, *(f"agent_{number}" for number in range(1, len(models)))]
        self.models = dict(zip(names, models, strict=True))
        self.objectives = dict(zip(names, objectives, strict=True))

    @classmethod
    def of(cls, settings: Settings, first: TrainedModel, agents: Sequence[str] = ()) -> Self:
        """Make the policies of a run, which all begin at the weights of ``first``.

        Args:
            settings: of the run.
            first: before its first update. The others have no starting model of their own: the KL
                penalty of all is against that of the first.
            agents: their names, where each has a policy of its own; none: there is one policy.
        """
        models, epochs = [first], settings.policy.epochs_per_rollout
        for _ in agents[1:]:
            models[-1].offload()  # so that one at a time is whole on the GPU
            models.append(make_second_model(first, settings.optimizer, epochs=epochs))
        return cls(models, [PolicyObjective.of(settings, first) for _ in models])

    @property
    def further(self) -> dict[str, TrainedModel]:
        """Return the policies but the first, by name."""
        return {name: model for name, model in self.models.items() if name != FIRST}

    def called(self, agents: Sequence[str]) -> list[str]:
        """Say what the policies of these agents are called where figures and files are named."""
        return [f"{agent} ({name})" for agent, name in zip(agents, self.models, strict=True)]

    def saved(self) -> dict[str, TrainedModel]:
        """Return the policies by the folder that a run leaves of each: the first is ``model``."""
        return {"model" if name == FIRST else name: m for name, m in self.models.items()}

    def update(self, samples: Sequence[TrainSample], rate: float) -> dict[str, list[UpdateResult]]:
        """Train each policy on its own samples; return the optimizer steps of each, by name.

        Raises:
            FloatingPointError: on all ranks, see `TrainedModel.update`; the policies before that
                one have learned from the step.
        """
        found = {}
        for number, (name, model) in enumerate(self.models.items()):
            model.reload()
            own = [sample for sample in samples if sample.policy == number]
            try:
                found[name] = model.update(own, self.objectives[name], rate)
            except FloatingPointError as error:
                raise FloatingPointError(f"{name}: {error}" if self.further else error) from error
            if self.further:
                model.offload()
        return found

    def offload(self) -> None:
        """Give up what GPU memory a rollout may use."""
        for model in self.models.values():
            model.offload()

    def stateful(self) -> dict[str, Any]:
        """Return what a checkpoint holds of all but the first, in the order of putting it back."""
        found: dict[str, Any] = {}
        for name, model in self.further.items():
            found |= {name: model, f"{name}_objective": self.objectives[name]}
        return found

    # --- Weights of all, by which a run is known, and to which it may go back

    def shard_sizes(self, kinds: Sequence[str] = KINDS) -> dict[str, int]:
        """Count the numbers of each tensor that `shards` gives a part of, whole, by key."""
        return {
            _key(name, key): size
            for name, model in self.models.items()
            for key, size in model.shard_sizes(kinds).items()
        }

    def shards(self, kinds: Sequence[str] = KINDS) -> dict[str, torch.Tensor]:
        """Copy this rank's shards of all policies, those of the first by their own keys."""
        return {
            _key(name, key): shard
            for name, model in self.models.items()
            for key, shard in model.shards(kinds).items()
        }

    def load_shards(self, shards: Mapping[str, torch.Tensor]) -> None:
        """Put back what `shards` gave."""
        for name, model in self.models.items():
            own = {
                key: shards[_key(name, key)]
                for key in model.shard_sizes()
                if _key(name, key) in shards
            }
            with model.reloaded() if self.further else nullcontext():
                model.load_shards(own)


def _key(name: str, key: str) -> str:
    return key if name == FIRST else f"{name}/{key}"
