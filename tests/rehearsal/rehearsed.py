"""What the two processes of `rehearse` have seen."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Seen(NamedTuple):
    """What one of the two processes has seen."""

    facts: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def of(self, scenario: str) -> dict[str, Any]:
        """The facts of a scenario, which went through."""
        facts: dict[str, Any] = self.facts[scenario]
        assert "error" not in facts, facts["error"]
        return facts

    def named(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin so, without that."""
        found = self.tensors.items()
        return {k.removeprefix(prefix): t for k, t in found if k.startswith(prefix)}


class Both(NamedTuple):
    """The same scenarios in both places."""

    gpu: Seen
    cpu: Seen
