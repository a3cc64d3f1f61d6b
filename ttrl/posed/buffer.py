"""The buffer of questions that were given or posed, each with where it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class BufferedQuestion:
    """A question of the buffer.

    Example: ``BufferedQuestion("posed-3-1", "What is 17 + 24?", step=3, seen=("posed-1-0",),
    share=0.5, asked=1)``.
    """

    id: str
    """What the question is called."""
    text: str
    """What is asked. Hostile: a model wrote it."""
    step: int = 0
    """The step in which it was posed; 0: it was given."""
    seen: tuple[str, ...] = ()
    """Ids of the questions that its proposer was shown."""
    share: float | None = None
    """Share of the solver's answers that agreed with the label when it was last asked; None: it was
    not asked."""
    asked: int = 0
    """How often it was asked."""


class Buffer:
    """Remembers questions, in the order in which they came; the oldest posed ones go first."""

    def __init__(self, size: int, given: Sequence[BufferedQuestion] = ()) -> None:
        """Begin with the given questions, which never go, beside ``size`` posed ones."""
        self.size = size
        self.entries: dict[str, BufferedQuestion] = {entry.id: entry for entry in given}

    def add(self, entry: BufferedQuestion) -> None:
        """Remember a question, and forget the oldest posed one where there is no room."""
        self.entries[entry.id] = entry
        posed = [id for id, known in self.entries.items() if known.step]
        for id in posed[: max(0, len(posed) - self.size)]:
            del self.entries[id]

    def note(self, id: str, share: float) -> None:
        """Note how the solver's answers to a question agreed, this time."""
        if (entry := self.entries.get(id)) is not None:
            self.entries[id] = replace(entry, share=share, asked=entry.asked + 1)

    def drawn(
        self, rng: np.random.Generator, count: int, among: Sequence[BufferedQuestion] | None = None
    ) -> list[BufferedQuestion]:
        """Draw questions without replacement, or all that there are, of all or of ``among``."""
        pool = list(self.entries.values()) if among is None else among
        picked = rng.choice(len(pool), min(count, len(pool)), replace=False) if pool else ()
        return [pool[int(i)] for i in picked]

    def state(self) -> list[dict[str, Any]]:
        """Return all entries, as JSON."""
        return [asdict(entry) | {"seen": list(entry.seen)} for entry in self.entries.values()]

    def load_state(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Restore what `state` returned."""
        entries = [BufferedQuestion(**{**saved, "seen": tuple(saved["seen"])}) for saved in state]
        self.entries = {entry.id: entry for entry in entries}
