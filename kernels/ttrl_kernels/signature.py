"""The inputs of an operator, described once, for its schema, its fake and its backward.

Operators take a flat list of tensors, numbers and names. A `Signature` is that list as records:

    LOGPROB = Signature(HeadInputs, RowStats)
    LOGPROB.schema(outputs=3)               # "(Tensor hidden_TH, ..., Tensor entropy) -> (...)"
    head, stats = LOGPROB.split(inputs)     # the records of one call
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, get_type_hints

from torch import Tensor

KINDS = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    float: "float",
    float | None: "float?",
    str: "str",
    bool: "bool",
}
"""Types of a record's fields, and their names in a schema."""


class HeadInputs(NamedTuple):
    """The arguments that all operators have: what log-probs are computed from."""

    hidden_TH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None
    targets_T: Tensor
    temperature: float
    temperature_T: Tensor | None
    """One per token, in place of ``temperature``."""
    softcap: float | None
    backend: str
    support_TM: Tensor | None
    """The tokens that could have been drawn; None: all."""


class Needs(NamedTuple):
    """The gradients that are wanted; the work for the others is not done."""

    hidden: bool
    weight: bool
    bias: bool


class OutputGradients(NamedTuple):
    """Gradients that autograd brings to a backward; None where an output was not used."""

    grad_logp_T: Tensor | None
    grad_entropy_T: Tensor | None


class Signature:
    """The arguments of an operator: the fields of some records, one after the other."""

    def __init__(self, *records: Any) -> None:
        """Describe an operator by named tuples or dataclasses, whose fields have other names."""
        self.records = records
        self.sizes = [len(get_type_hints(record)) for record in records]

    def __len__(self) -> int:
        """Count the operator's arguments."""
        return sum(self.sizes)

    def schema(self, outputs: int) -> str:
        """Write the operator's schema, whose results are ``outputs`` tensors."""
        arguments = [
            f"{KINDS[kind]} {name}"
            for record in self.records
            for name, kind in get_type_hints(record).items()
        ]
        return f"({', '.join(arguments)}) -> ({', '.join(['Tensor'] * outputs)})"

    def split(self, inputs: Sequence[Any]) -> list[Any]:
        """Make the records of a flat list of arguments."""
        made, start = [], 0
        for record, size in zip(self.records, self.sizes, strict=True):
            made.append(record(*inputs[start : start + size]))
            start += size
        return made
