"""A push of weights, checked: an engine with a partial set samples from a model that never was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch


def complete(
    weights: Iterable[tuple[str, torch.Tensor]], shapes: Mapping[str, torch.Size]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield ``weights``, one by one, while they are those of ``shapes``.

    Raises:
        RuntimeError: if one is unknown, comes twice or has another shape than in ``shapes``; and,
            after the last one, if any of ``shapes`` did not come.
    """
    missing = dict.fromkeys(shapes)
    for name, tensor in weights:
        if name not in shapes:
            raise RuntimeError(f"weight push: unknown parameter {name!r}")
        if name not in missing:
            raise RuntimeError(f"weight push: {name!r} came twice")
        if tensor.shape != shapes[name]:  # an engine might broadcast it
            raise RuntimeError(
                f"weight push: {name!r} has the shape {list(tensor.shape)}, expected "
                f"{list(shapes[name])}"
            )
        del missing[name]
        yield name, tensor
    if missing:
        raise RuntimeError(
            f"weight push: {len(missing)} parameters missing: {sorted(missing)[:3]} ..."
        )
