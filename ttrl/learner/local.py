"""A trained model in one process: float32 weights and their optimizer."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from transformers import PreTrainedModel

from ttrl.learner.optimizer import adamw
from ttrl.learner.trained_model import KINDS, TrainedModel, needs_reference
from ttrl.models import lora
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks


class LocalModel(TrainedModel):
    """A model in one process: trained in float32, with products in ``model.dtype``."""

    def __init__(self, model: PreTrainedModel, settings: Settings) -> None:
        """Take over ``model``, loaded by `ttrl.models.packed_model.load_policy_model`.

        It is in float32, or in ``model.dtype`` where only adapters are trained.
        """
        super().__init__(model, settings, Ranks())
        self.network, self.reference = self._packed(model, settings), None
        if needs_reference(settings):
            frozen = copy.deepcopy(self.model).eval().requires_grad_(False)
            self.reference = self._packed(frozen, settings)
        # One kernel on a GPU: torch's other AdamW needs a copy of all weights there.
        fused = model.device.type == "cuda"
        self.optimizer = adamw(model, settings.optimizer, fused=fused)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all parameters, by their transformers names; tied ones once."""
        named = list(self.model.named_parameters())
        yield from lora.merged(named, lora.scale(self.settings))

    def offload(self) -> None:
        """Forget the gradients, which a step that has been taken needs no more."""
        self._zero_grad()

    def reload(self) -> None:
        """Do nothing: nothing has left."""

    def _sizes(self) -> dict[str, int]:
        return {name: parameter.numel() for name, parameter in self._trained()}

    def shards(self, kinds: Sequence[str] = KINDS) -> dict[str, torch.Tensor]:
        """Copy all that is trained: there is one rank."""
        if self.steps_taken:
            self._make_moments()  # of parameters that never had a gradient
        return {
            key: tensor.detach().flatten().to("cpu", copy=True)
            for key, tensor in self._holdings()
            if key.partition("/")[0] in kinds
        }

    @torch.no_grad()
    def load_shards(self, shards: Mapping[str, torch.Tensor]) -> None:
        """Put back what `shards` gave."""
        for key, tensor in self._holdings():
            if key in shards:
                tensor.copy_(shards[key].view(tensor.shape))

    def _holdings(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors themselves, by the keys of `shards`."""
        taken = self.steps_taken  # if none, moments that are there are those of forgotten steps
        for name, parameter in self._trained():
            yield f"weights/{name}", parameter
            state = self.optimizer.state.get(parameter, {}) if taken else {}
            yield from ((f"{kind}/{name}", state[kind]) for kind in KINDS if kind in state)

    @property
    def _adam(self) -> torch.optim.Optimizer:
        return self.optimizer

    def _optimized(self) -> Iterable[torch.Tensor]:
        return (parameter for _, parameter in self._trained())

    def _zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def _backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def _gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        return ((n, p.grad) for n, p in self._trained() if p.grad is not None)

    def _apply(self, rate: float, grad_norm: torch.Tensor) -> None:
        torch.nn.utils.clip_grads_with_norm_(
            self.model.parameters(), self.settings.optimizer.grad_clip, grad_norm
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
