"""State that decides the rest of a run: taken for a checkpoint, and put back."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch

from ttrl.run.checkpoint import Checkpoint
from ttrl.system.ranks import Ranks
from ttrl.system.rng import globals_state, restore_globals


@runtime_checkable
class Stateful(Protocol):
    """A part of a run whose state decides what comes; random numbers have none."""

    def state(self) -> Any:
        """Return the state as JSON."""
        ...

    def load_state(self, state: Any) -> None:
        """Restore what `state` returned."""
        ...


@runtime_checkable
class Sharded(Protocol):
    """A `Stateful` part with large tensors besides, of which each rank has a shard."""

    def shard_sizes(self) -> dict[str, int]:
        """Count the numbers of each tensor, whole, by name; it may depend on the `state`."""
        ...

    def shards(self) -> dict[str, torch.Tensor]:
        """Copy this rank's shards to the CPU, by name, flat, in float32."""
        ...

    def load_shards(self, shards: Mapping[str, torch.Tensor]) -> None:
        """Put back what `shards` gave, once the state has been loaded."""
        ...


class Generators:
    """The global generators of random numbers, which only users' code draws from."""

    def __init__(self, ranks: Ranks) -> None:
        """Keep the generators of each of ``ranks``."""
        self.ranks = ranks

    def state(self) -> list[dict[str, Any]]:
        """Return all ranks' generators; all must ask for them together."""
        return self.ranks.gather(globals_state())

    def load_state(self, state: list[dict[str, Any]]) -> None:
        """Put this rank's generators back; another one's where there were fewer ranks."""
        restore_globals(state[self.ranks.rank % len(state)])


class Clock:
    """The time that the run has taken, interruptions aside."""

    def __init__(self) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()

    def seconds(self) -> float:
        """Return the run's age in seconds."""
        return time.perf_counter() - self._begun

    def state(self) -> float:
        """Return the run's age in seconds, as JSON."""
        return self.seconds()

    def load_state(self, state: float) -> None:
        """Add the age that `state` returned."""
        self._begun -= state


def states_of(parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """Copy the state of each part, by its name: it is written while the run goes on."""
    return {name: copy.deepcopy(part.state()) for name, part in parts.items()}


def shards_of(parts: Mapping[str, Stateful]) -> dict[str, torch.Tensor]:
    """Return copies of this rank's shards of all parts' tensors, as PART/NAME."""
    return {
        f"{name}/{key}": shard
        for name, part in parts.items()
        if isinstance(part, Sharded)
        for key, shard in part.shards().items()
    }


def restore(
    parts: Mapping[str, Stateful], states: Mapping[str, Any], checkpoint: Checkpoint, ranks: Ranks
) -> None:
    """Give every part, in order, what `states_of` and `shards_of` have saved of it.

    Raises:
        UserError: if the checkpoint holds something else than these parts save.
    """
    for name, part in parts.items():
        with checkpoint.errors_as_user_error():
            part.load_state(states[name])
        if isinstance(part, Sharded):
            sizes = {f"{name}/{key}": size for key, size in part.shard_sizes().items()}
            shards = checkpoint.shards(sizes, ranks.rank, ranks.count)
            part.load_shards({key.removeprefix(f"{name}/"): s for key, s in shards.items()})
