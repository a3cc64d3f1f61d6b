"""The policy in one process: float32 weights and their optimizer."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from transformers import PreTrainedModel

from ttrl.learner.update import KINDS, Policy, adamw, needs_reference
from ttrl.models import lora
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks


class LocalPolicy(Policy):
    """Trained weights are float32; matrix products are in the settings' ``model.dtype``."""

    def __init__(self, model: PreTrainedModel, settings: Settings) -> None:
        """Take over ``model``, loaded by `ttrl.models.packed_model.load_policy_model`: in float32,
        or in ``model.dtype`` where only adapters are trained."""
        super().__init__(model, settings, Ranks())
        self.network, self.reference = self._packed(model, settings), None
        if needs_reference(settings):
            frozen = copy.deepcopy(self.model).eval().requires_grad_(False)
            self.reference = self._packed(frozen, settings)
        self.optimizer = adamw(model, settings.optimizer, fused=self._fused)

    @property
    def _fused(self) -> bool:
        """Whether AdamW is one kernel: on a GPU torch's other one needs a copy of all weights."""
        return bool(self.model.device.type == "cuda")

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All parameters, by their transformers names; tied ones once."""
        named = list(self.model.named_parameters())
        yield from lora.merged(named, lora.scale(self.settings))

    def make_room(self) -> None:
        """Nothing leaves: see ``memory.offload_during_rollout``."""

    def come_back(self) -> None:
        """Nothing left."""

    def sizes(self) -> dict[str, int]:
        """Of all that is trained."""
        return {name: parameter.numel() for name, parameter in self._trained()}

    def shares(self, kinds: Sequence[str] = KINDS) -> dict[str, torch.Tensor]:
        """All that is trained: there is one rank. Before the first step there are no moments."""
        return {
            key: tensor.detach().flatten().to("cpu", copy=True)
            for key, tensor in self._holdings()
            if key.partition("/")[0] in kinds
        }

    @torch.no_grad()
    def load_shares(self, shares: Mapping[str, torch.Tensor]) -> None:
        """Put `shares` back."""
        self._make_moments()
        for key, tensor in self._holdings():
            if key in shares:
                tensor.copy_(shares[key].view(tensor.shape))

    def _holdings(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors themselves, by the keys of `shares`."""
        for name, parameter in self._trained():
            yield f"weights/{name}", parameter
            state = self.optimizer.state.get(parameter, {})
            yield from ((f"{kind}/{name}", state[kind]) for kind in KINDS if kind in state)

    def _make_moments(self) -> None:
        """What the optimizer itself makes in its first step."""
        for _, parameter in self._trained():
            if parameter not in self.optimizer.state:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(0.0, device=parameter.device if self._fused else None),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

    @property
    def steps_taken(self) -> int:
        """Optimizer steps so far."""
        return max((int(state["step"]) for state in self.optimizer.state.values()), default=0)

    @steps_taken.setter
    def steps_taken(self, steps: int) -> None:
        for state in self.optimizer.state.values():
            state["step"].fill_(steps)

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
