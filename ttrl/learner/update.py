"""The update: from chosen completions to optimizer steps, whatever holds the weights.

`Policy` is what `ttrl.learner.local` (one process) and `ttrl.learner.zero3` (shards on many) have
in common. A step's micro-batches are dealt over the ranks, and all normalization is in the token
weights, so that one process, many ranks and any packing give the same step, up to rounding.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from ttrl_kernels import PolicyLoss, chosen_backend

from ttrl.learner.correction import corrected
from ttrl.models import lora
from ttrl.models.packed_model import PackedModel
from ttrl.models.packing import batch_of, deal, pack, sequence_ids, sequence_weights
from ttrl.settings import MemorySettings, OptimizerSettings, Settings
from ttrl.system.ranks import Ranks
from ttrl.system.rng import strictly_deterministic
from ttrl.types import PackedBatch, TrainSample, UpdateResult, UserError


def learning_rate(step: int, total: int, optimizer: OptimizerSettings) -> float:
    """The rate at ``step`` (from 1) of ``total``: linear warm-up, then a cosine."""
    rising = math.ceil(optimizer.warmup_share * total)
    if step <= rising:
        return optimizer.learning_rate * step / rising
    done = (step - 1 - rising) / max(1, total - rising)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return optimizer.learning_rate * (
        optimizer.final_lr_share + (1 - optimizer.final_lr_share) * cosine
    )


def needs_reference(settings: Settings) -> bool:
    """Whether a copy of the starting model is to be kept, as it is, for the KL term.

    Without adapters a model that has some is the starting one.
    """
    return settings.loss.kl_coef > 0 and settings.lora.rank is None


def adamw(
    model: torch.nn.Module, optimizer: OptimizerSettings, *, fused: bool
) -> torch.optim.AdamW:
    """The optimizer of all that is trained; ``fused`` makes no copies on its way, and rounds
    differently."""
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=optimizer.learning_rate,
        betas=optimizer.betas,
        weight_decay=optimizer.weight_decay,
        fused=fused,
    )


KINDS = ("weights", "exp_avg", "exp_avg_sq")
"""What there is of every trained parameter: itself, and AdamW's moments of its gradient."""


class Policy(ABC):
    """A model that GRPO updates change."""

    network: torch.nn.Module
    """A `PackedModel` of the model, or what wraps it."""
    reference: torch.nn.Module | None
    """The same of the starting model, frozen, where `needs_reference`."""

    def __init__(self, model: PreTrainedModel, settings: Settings, ranks: Ranks) -> None:
        """Take over ``model``, loaded by `ttrl.models.packed_model.load_policy_model`."""
        if settings.lora.rank is not None:
            lora.add_adapters(model, settings)
        self.model = model
        self.settings = settings
        self.ranks = ranks
        self.kernels = chosen_backend(model.device.type)
        """Which row backend computes the loss; they agree up to rounding."""
        if settings.memory.gradient_checkpointing:
            _recompute(model, settings.memory)

    @staticmethod
    def _packed(model: PreTrainedModel, settings: Settings) -> PackedModel:
        """``model`` as a function of batches."""
        return PackedModel(model, getattr(torch, settings.model.dtype))

    @abstractmethod
    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All parameters, whole, by their transformers names; tied ones once.

        Adapters are merged into what they stand beside. All ranks must walk through them together
        and to the end.
        """

    def hand_over(self, take: Callable[[Iterator[tuple[str, torch.Tensor]]], None]) -> None:
        """Have rank 0 ``take`` the `named_weights`, one by one, while the other ranks help.

        Raises:
            UserError: on all ranks, what ``take`` raised; also what the system would not do.
        """
        weights = self.named_weights()
        failed: UserError | OSError | None = None
        if self.ranks.is_main:
            try:
                take(weights)
            except (UserError, OSError) as error:
                failed = error
        for _ in weights:  # to the end: whoever stopped early would leave the others waiting
            pass

        def say() -> None:
            if failed is not None:
                raise failed

        self.ranks.first(say)

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """What the optimizer changes: all parameters, or the adapters."""
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)

    @abstractmethod
    def make_room(self) -> None:
        """Give up what GPU memory a rollout may use; `come_back` before the next update."""

    @abstractmethod
    def come_back(self) -> None:
        """Take back what `make_room` gave up."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """How many numbers each parameter has that `shares` knows, whole, by name."""

    @abstractmethod
    def shares(self, kinds: Sequence[str] = KINDS) -> dict[str, torch.Tensor]:
        """Copies on the CPU of what this rank holds and trains of the ``kinds``, flat, in float32.

        The key of a parameter's weight is ``weights/NAME``, and so on. Shares of all ranks, one
        after the other, are the whole, with nothing or some zeros behind it; all are as long, the
        size divided by the number of ranks, rounded up. Before the first step there may be no
        moments.
        """

    @abstractmethod
    def load_shares(self, shares: Mapping[str, torch.Tensor]) -> None:
        """Put `shares` back; kinds that are left out stay as they are."""

    @property
    @abstractmethod
    def steps_taken(self) -> int:
        """Optimizer steps so far: AdamW's moments are corrected by it."""

    @steps_taken.setter
    @abstractmethod
    def steps_taken(self, steps: int) -> None: ...

    @abstractmethod
    def _zero_grad(self) -> None:
        """Forget the gradients of an earlier step."""

    @abstractmethod
    def _backward(self, loss: torch.Tensor) -> None:
        """Add the loss's gradients to those of this step, summed over ranks."""

    @abstractmethod
    def _gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """This rank's share of the step's gradients, parameter by parameter: not copies of all."""

    def _gradient_norm(self) -> torch.Tensor:
        """Of this rank's share, in float32."""
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for _, g in self._gradients()]
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    @abstractmethod
    def _apply(self, rate: float, grad_norm: torch.Tensor) -> None:
        """Clip the gradients, whose norm this is, and take the optimizer step."""

    def _forward(self, batch: PackedBatch, **options: Any) -> Any:
        """What the model's `FusedLMHead` gives, at the temperature of the rollouts."""
        return self.network(batch, temperature=self.settings.rollout.temperature, **options)

    @torch.no_grad()
    def _reference_logp(self, batch: PackedBatch) -> torch.Tensor | None:
        """The starting model's log-probs of the targets; None without a KL term."""
        logp_T: torch.Tensor
        if self.settings.loss.kl_coef == 0:
            return None
        if self.reference is not None:
            temperature = self.settings.rollout.temperature
            logp_T = self.reference(batch, temperature=temperature).logp_T
        else:
            with lora.without_adapters(self.model):
                logp_T = self._forward(batch).logp_T
        return logp_T

    @torch.no_grad()
    def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """Log-prob of each token of a completion, at the temperature of the rollouts."""
        sequence = TrainSample(
            "", tuple(prompt_ids), tuple(completion_ids), (0.0,) * len(completion_ids), 0.0
        )
        (batch,) = pack([sequence], [0.0], self.settings.memory.tokens_per_batch)
        batch = _to(batch, self.model.device)
        logp_T: torch.Tensor = self._forward(batch).logp_T
        values: list[float] = logp_T[batch.targets_T >= 0].tolist()
        return values

    @strictly_deterministic()
    def update(self, samples: Sequence[TrainSample], rate: float) -> list[UpdateResult]:
        """Train on ``samples``, in order, ``sequences_per_update`` of them per optimizer step.

        Args:
            samples: the chosen completions of one rollout; the same on all ranks.
            rate: the learning rate of these steps.

        Returns:
            One result per optimizer step; steps without any gradient are not taken.

        Raises:
            FloatingPointError: on all ranks, if a sample, a loss or a gradient is not finite; the
                weights are then those before the step.
        """
        size = self.settings.policy.sequences_per_update
        steps = [samples[i : i + size] for i in range(0, len(samples), size)]
        steps = [step for step in steps if any(map(self._is_live, step))]
        return [self._optimizer_step(step, rate) for step in self._with_old_logprobs(steps)]

    def _is_live(self, sample: TrainSample) -> bool:
        """Whether the sample has a gradient.

        A zero weight or, without a KL or entropy term, a zero advantage means a zero gradient,
        exactly: such sequences count in the token weights, and cost nothing.
        """
        loss = self.settings.loss
        every = loss.kl_coef > 0 or loss.entropy_coef > 0
        return sample.weight != 0 and (every or sample.advantage != 0)

    def _with_old_logprobs(
        self, steps: Sequence[Sequence[TrainSample]]
    ) -> list[Sequence[TrainSample]]:
        """The steps, with the policy's own log-probs where ``loss.old_logprobs`` needs them.

        The first step starts from the same weights, so its ratio is 1 without them; only a
        correction of the sampler's ratio needs them there too.
        """
        loss = self.settings.loss
        known = 1 if loss.sampler_correction == "none" else 0
        if loss.old_logprobs == "sampler":
            known = len(steps)
        later = [s for step in steps[known:] for s in step if self._is_live(s)]
        if not later:
            return list(steps)
        logprobs = iter(self._own_logprobs(later))
        return [
            *steps[:known],
            *(
                [replace(s, old_logprobs=next(logprobs)) if self._is_live(s) else s for s in step]
                for step in steps[known:]
            ),
        ]

    @torch.no_grad()
    def _own_logprobs(self, samples: Sequence[TrainSample]) -> list[tuple[float, ...]]:
        """The present policy's log-probs of the completions, computed by all ranks together."""
        room, ranks = self.settings.memory.tokens_per_batch, self.ranks
        own: dict[int, tuple[float, ...]] = {}
        for chosen in deal(samples, room, ranks.count)[ranks.rank :: ranks.count]:
            together = [samples[i] for i in chosen]
            batch = _to(batch_of(together, [0.0] * len(together)), self.model.device)
            logprobs = iter(self._forward(batch).logp_T[batch.targets_T >= 0].tolist())
            own |= {i: tuple(islice(logprobs, len(samples[i].completion_ids))) for i in chosen}
        found = ranks.merge(own)
        return [found[i] for i in range(len(samples))]

    def _optimizer_step(self, samples: Sequence[TrainSample], rate: float) -> UpdateResult:
        started = time.perf_counter()
        loss = self.settings.loss
        self._refuse_bad_samples(samples)
        weights = sequence_weights(samples, loss.aggregation, self.settings.rollout.max_new_tokens)
        live = [i for i, s in enumerate(samples) if self._is_live(s)]
        batches = pack(
            [samples[i] for i in live],
            [weights[i] for i in live],
            self.settings.memory.tokens_per_batch,
            self.ranks.count,
        )
        own = _Sums()
        self._zero_grad()
        for batch in batches[self.ranks.rank :: self.ranks.count]:
            batch, cut_T = corrected(batch, loss.sampler_correction, loss.sampler_ratio_cap)
            result = self._loss(_to(batch, self.model.device))
            self._backward(result.loss)
            own.add(batch, result, cut_T)  # waits for the GPU: there is work queued by now
        own_norm = self._gradient_norm()
        sums = _Sums.over(self.ranks.gather(own))
        # Each rank holds a share of every gradient: their squares add up.
        norms = torch.stack(self.ranks.gather(own_norm.cpu()))
        grad_norm = torch.linalg.vector_norm(norms) if len(norms) > 1 else norms[0]
        self._refuse_non_finite(sums.loss, grad_norm)
        self._apply(rate, grad_norm)
        return UpdateResult(
            loss=sums.loss,
            grad_norm=grad_norm.item(),
            learning_rate=rate,
            clip_fraction=sums.clipped / sums.tokens,
            kl=sums.kl / sums.tokens,
            entropy=sums.entropy / sums.tokens,
            sampler_kl=sums.sampler_kl / sums.tokens,
            sampler_log_ratio=sums.sampler_log_ratio / sums.tokens,
            sampler_max_gap=sums.sampler_max_gap,
            corrected=sums.corrected / sums.tokens,
            tokens=sums.tokens,
            sequences=len(live),
            skipped_sequences=len(samples) - len(live),
            seconds=time.perf_counter() - started,
        )

    def _loss(self, batch: PackedBatch) -> PolicyLoss:
        """The policy loss of one micro-batch."""
        loss = self.settings.loss
        from_sampler = loss.old_logprobs == "sampler"
        result: PolicyLoss = self._forward(
            batch,
            advantages_T=batch.advantages_T,
            token_weights_T=batch.token_weights_T,
            old_logp_T=batch.sampler_logp_T if from_sampler else batch.old_logp_T,
            ref_logp_T=self._reference_logp(batch),
            policy=loss.policy,
            ratio_level=loss.ratio_level,
            sequence_ids_T=sequence_ids(batch) if loss.ratio_level == "sequence" else None,
            clip_low=loss.clip_low,
            clip_high=loss.clip_high,
            dual_clip=loss.dual_clip,
            kl=loss.kl_estimator,
            kl_coef=loss.kl_coef,
            entropy_coef=loss.entropy_coef,
        )
        return result

    def _refuse_bad_samples(self, samples: Sequence[TrainSample]) -> None:
        """Raise, on all ranks alike, if a sample brings a number that is not finite."""
        for sample in samples:
            numbers = {
                "advantage": (sample.advantage,),
                "weight": (sample.weight,),
                "sampler log-prob": sample.logprobs,
            }
            for what, values in numbers.items():
                bad = [value for value in values if not math.isfinite(value)]
                if bad:
                    self._zero_grad()
                    raise FloatingPointError(
                        f"the update is not finite: question {sample.question_id!r} has "
                        f"{len(bad)} of {len(values)} {what}s {bad[0]}; the weights are unchanged"
                    )

    def _refuse_non_finite(self, loss: float, grad_norm: torch.Tensor) -> None:
        """Raise before clipping spreads a NaN to all weights; every rank knows and raises."""
        if math.isfinite(loss) and bool(torch.isfinite(grad_norm)):
            return
        bad = [name for name, g in self._gradients() if not bool(torch.isfinite(g).all())]
        bad = list(dict.fromkeys(name for part in self.ranks.gather(bad) for name in part))
        self._zero_grad()
        raise FloatingPointError(
            f"the update is not finite (loss {loss}, gradient norm {grad_norm.item()}, "
            f"gradients of {bad[:3] or 'no parameter'}); the weights are unchanged; lower "
            "optimizer.learning_rate"
        )


def recomputed_layers(memory: MemorySettings, layers: int) -> int:
    """How many of so many layers recompute their activations in the backward pass: the first ones.

    The last ones keep theirs: those are gone before the others make their own again.
    """
    share = memory.recompute_share if memory.gradient_checkpointing else 0.0
    return math.ceil(round(share * layers, 6))  # 0.14 of 50 are 7, though not in floats


def _recompute(model: PreTrainedModel, memory: MemorySettings) -> None:
    """Have the `recomputed_layers` of a model do so."""
    model.gradient_checkpointing_enable()
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers[recomputed_layers(memory, len(layers)) :]:
        layer.gradient_checkpointing = False


def _to(batch: PackedBatch, device: torch.device) -> PackedBatch:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    moved: dict[str, Any] = {
        name: value.to(device) if torch.is_tensor(value) else value
        for name, value in values.items()
    }
    return PackedBatch(**moved)


class _Sums:
    """Sums over the trained tokens of an optimizer step."""

    def __init__(self) -> None:
        self.loss = self.clipped = self.kl = self.entropy = 0.0
        self.sampler_kl = self.sampler_log_ratio = self.sampler_max_gap = self.corrected = 0.0
        self.tokens = 0

    def add(self, batch: PackedBatch, result: PolicyLoss, cut_T: torch.Tensor) -> None:
        """Add one micro-batch; ``cut_T`` says where the sampler's correction was cut off."""
        live_T = batch.token_weights_T != 0
        # k3 of trainer against sampler: never negative, 0 only where both agree.
        # In float64, where the square of a gap of 1e-7 is not lost beside 1.
        gap_T = (result.logp_T.cpu() - batch.sampler_logp_T)[live_T].double()
        self.loss += result.loss.item()
        self.clipped += result.clipped_T.cpu()[live_T].sum().item()
        if result.kl_T is not None:
            self.kl += result.kl_T.cpu()[live_T].sum().item()
        self.entropy += result.entropy_T.cpu()[live_T].sum().item()
        self.sampler_kl += (gap_T.expm1() - gap_T).sum().item()
        self.sampler_log_ratio += gap_T.sum().item()
        self.corrected += cut_T[live_T].sum().item()
        self.sampler_max_gap = max([self.sampler_max_gap, *gap_T.abs().tolist()])
        self.tokens += int(live_T.sum())

    @classmethod
    def over(cls, parts: Sequence[_Sums]) -> _Sums:
        """All ranks' together."""
        whole = cls()
        for name in vars(whole):
            combine = max if name == "sampler_max_gap" else sum
            setattr(whole, name, combine(getattr(part, name) for part in parts))
        return whole
