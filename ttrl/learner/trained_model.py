"""A model that is trained: from samples and an objective to optimizer steps.

`TrainedModel` is what `ttrl.learner.local` (one process) and `ttrl.learner.zero3` (shards on many)
have in common. A step's micro-batches are dealt over the ranks, and all normalization is in the
token weights, so that one process, many ranks and any packing give the same step, up to rounding.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from transformers import PreTrainedModel
from ttrl_kernels import chosen_backend

from ttrl.learner.objective import Objective, PreparedStep, Scorer, TokenScores
from ttrl.learner.step_sums import StepSums
from ttrl.models import lora
from ttrl.models.dealing import deal
from ttrl.models.packed_model import PackedModel
from ttrl.models.packing import batch_of, moved, pack, sampled_from
from ttrl.models.recompute import recompute
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks
from ttrl.system.rng import strictly_deterministic
from ttrl.types import PackedBatch, TrainSample, UpdateResult, UserError


def needs_reference(settings: Settings) -> bool:
    """Say whether a copy of the starting model is to be kept, as it is, to compare with.

    Without adapters a model that has some is the starting one.
    """
    reward = settings.reward
    compared = settings.loss.kl_coef > 0 or reward.kl_coef > 0 or reward.advantages == "prime"
    return compared and settings.lora.rank is None


KINDS = ("weights", "exp_avg", "exp_avg_sq")
"""Tensors of every trained parameter: itself, and AdamW's moments of its gradient."""


class TrainedModel(ABC):
    """A language model whose weights optimizer steps change."""

    network: torch.nn.Module
    """A `PackedModel` of the model, or what wraps it."""
    rate_setting = "optimizer.learning_rate"
    """The setting of its learning rate, which a message advises to lower."""
    reference: torch.nn.Module | None
    """A `PackedModel` of the starting model, frozen, where `needs_reference`."""

    def __init__(self, model: PreTrainedModel, settings: Settings, ranks: Ranks) -> None:
        """Take over ``model``, loaded by `ttrl.models.packed_model.load_policy_model`."""
        if settings.lora.rank is not None:
            lora.add_adapters(model, settings)
        self.model = model
        self.settings = settings
        self.ranks = ranks
        self.kernels = chosen_backend(model.device.type)
        """The row backend that computes the loss; all of them agree up to rounding."""
        recompute(model, settings.memory)

    @staticmethod
    def _packed(model: PreTrainedModel, settings: Settings) -> PackedModel:
        """Make ``model`` a function of batches."""
        return PackedModel(model, getattr(torch, settings.model.dtype))

    @abstractmethod
    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all parameters, whole, by their transformers names; tied ones once.

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

        self.ranks.on_rank_zero(say)

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield what the optimizer changes: all parameters, or the adapters."""
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)

    @abstractmethod
    def offload(self) -> None:
        """Give up what GPU memory a rollout may use; `reload` before the next update."""

    @abstractmethod
    def reload(self) -> None:
        """Take back what `offload` gave up."""

    @contextmanager
    def reloaded(self) -> Iterator[None]:
        """Have what `offload` gives up inside this context: to train, or to put something back.

        What is not on the GPU would be put back in a copy.
        """
        self.reload()
        yield
        self.offload()

    @abstractmethod
    def _sizes(self) -> dict[str, int]:
        """Count the numbers of each parameter that is trained, whole, by name."""

    def shard_sizes(self, kinds: Sequence[str] = KINDS) -> dict[str, int]:
        """Count the numbers of each tensor that `shards` gives a part of, whole, by key."""
        known = kinds if self.steps_taken else [kind for kind in kinds if kind == "weights"]
        sizes = self._sizes()
        return {f"{kind}/{name}": size for kind in known for name, size in sizes.items()}

    @abstractmethod
    def shards(self, kinds: Sequence[str] = KINDS) -> dict[str, torch.Tensor]:
        """Copy to the CPU what this rank holds and trains of the ``kinds``, flat, in float32.

        The key of a parameter's weight is ``weights/NAME``, and so on. Shards of all ranks, one
        after the other, are the whole, with nothing or some zeros behind it; all are as long, the
        size divided by the number of ranks, rounded up. Before the first step there are no
        moments.
        """

    @abstractmethod
    def load_shards(self, shards: Mapping[str, torch.Tensor]) -> None:
        """Put back what `shards` gave; kinds that are left out stay as they are."""

    def state(self) -> dict[str, int]:
        """Return what decides the next updates besides the `shards`, as JSON."""
        return {"steps_taken": self.steps_taken}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Restore what `state` returned, whose `shards` are then to be loaded."""
        if steps := state["steps_taken"]:
            self._make_moments()
            for moments in self._adam.state.values():
                moments["step"].fill_(steps)

    @torch.no_grad()
    def forget_steps(self) -> None:
        """Make the optimizer one that has taken no step: what it has learned of gradients is 0."""
        for moments in self._adam.state.values():
            for tensor in moments.values():
                tensor.zero_()

    @property
    @abstractmethod
    def _adam(self) -> torch.optim.Optimizer:
        """The AdamW that holds the moments."""

    @abstractmethod
    def _optimized(self) -> Iterable[torch.Tensor]:
        """Return the tensors that `_adam` changes, by which it keeps their moments."""

    @property
    def steps_taken(self) -> int:
        """The number of optimizer steps so far, by which AdamW's moments are corrected."""
        return max((int(state["step"]) for state in self._adam.state.values()), default=0)

    def _make_moments(self) -> None:
        """Make what AdamW itself makes in its first step, for tensors that have none yet."""
        fused, steps = self._adam.defaults["fused"], float(self.steps_taken)
        for tensor in self._optimized():
            if not self._adam.state.get(tensor):
                self._adam.state[tensor] = {
                    "step": torch.tensor(steps, device=tensor.device if fused else None),
                    "exp_avg": torch.zeros_like(tensor),
                    "exp_avg_sq": torch.zeros_like(tensor),
                }

    @abstractmethod
    def _zero_grad(self) -> None:
        """Forget the gradients of an earlier step."""

    @abstractmethod
    def _backward(self, loss: torch.Tensor) -> None:
        """Add the loss's gradients to those of this step, summed over ranks."""

    @abstractmethod
    def _gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield this rank's share of the step's gradients by parameter: not copies of all."""

    def _gradient_norm(self) -> torch.Tensor:
        """Compute the norm of this rank's share of the gradients, in float32."""
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for _, g in self._gradients()]
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    @abstractmethod
    def _apply(self, rate: float, grad_norm: torch.Tensor) -> None:
        """Clip the gradients, which have this norm, and take the optimizer step."""

    @torch.no_grad()
    def reference_logp(self, batch: PackedBatch, temperature: float | None = None) -> torch.Tensor:
        """Compute the starting model's log-probs [T] of a batch's targets.

        Without a `reference` it is the model without its adapters.

        Args:
            batch: what to compute them of.
            temperature: of the whole distribution; None: of the one that was sampled from.
        """
        options = {"temperature": temperature}
        if temperature is None:
            options = sampled_from(batch, self.settings.rollout.temperature)
        logp_T: torch.Tensor
        if self.reference is not None:
            logp_T = self.reference(batch, **options).logp_T
        else:
            with lora.without_adapters(self.model):
                logp_T = self.network(batch, **options).logp_T
        return logp_T

    @torch.no_grad()
    def per_token(
        self,
        samples: Sequence[TrainSample],
        figures: Callable[[PackedBatch], Sequence[torch.Tensor]],
    ) -> list[list[tuple[float, ...]]]:
        """Compute ``figures`` [T] of packed batches; return each sample's, per trained token.

        All ranks call this together, with the same samples, and share the work.
        """
        room, ranks = self.settings.memory.tokens_per_batch, self.ranks
        own: dict[int, list[tuple[float, ...]]] = {}
        for chosen in deal(samples, room, ranks.count)[ranks.rank :: ranks.count]:
            together = [samples[i] for i in chosen]
            batch = moved(batch_of(together, [0.0] * len(together)), self.model.device)
            values = [iter(figure_T.tolist()) for figure_T in figures(batch)]
            own |= {i: [tuple(islice(v, len(samples[i].logprobs))) for v in values] for i in chosen}
        found = ranks.gather_dict(own)
        return [found[i] for i in range(len(samples))]

    def score(self, samples: Sequence[TrainSample]) -> list[TokenScores]:
        """Compute each trained token's log-prob and entropy, as it was sampled."""

        def scores(batch: PackedBatch) -> Sequence[torch.Tensor]:
            sampled = sampled_from(batch, self.settings.rollout.temperature)
            found: Sequence[torch.Tensor] = self.network(batch, **sampled)
            return found

        return [TokenScores(*figures) for figures in self.per_token(samples, scores)]

    def _scored_once(self) -> Scorer:
        """Return `score` for weights that do not move: samples of several epochs cost it once."""
        known: dict[int, TokenScores] = {}

        def score(samples: Sequence[TrainSample]) -> list[TokenScores]:
            new = list({id(s): s for s in samples if id(s) not in known}.values())
            known.update(zip(map(id, new), self.score(new), strict=True))
            return [known[id(sample)] for sample in samples]

        return score

    def logprobs(self, samples: Sequence[TrainSample]) -> list[tuple[float, ...]]:
        """Compute the log-prob of each trained token, of what it was sampled from."""
        return [scores.logprobs for scores in self.score(samples)]

    @strictly_deterministic()
    def update(
        self, samples: Sequence[TrainSample], objective: Objective, rate: float
    ) -> list[UpdateResult]:
        """Train on ``samples``, in order, ``sequences_per_update`` of them per optimizer step.

        Args:
            samples: chosen from one rollout; the same on all ranks.
            objective: what to minimize.
            rate: the learning rate of these steps.

        Returns:
            One result per optimizer step; steps without any gradient are not taken.

        Raises:
            FloatingPointError: on all ranks, if a sample, a loss or a gradient is not finite; the
                weights are then those before the step.
        """
        size = self.settings.policy.sequences_per_update
        steps = [samples[i : i + size] for i in range(0, len(samples), size)]
        self._refuse_bad_samples(samples)
        epochs, results = steps * self.settings.policy.epochs_per_rollout, []
        for step in objective.prepared(epochs, self._scored_once()):
            if any(map(objective.has_gradient, step.samples)):
                result = self._optimizer_step(step, objective, rate)
                objective.after_step(result)
                results.append(result)
        return results

    def _optimizer_step(
        self, step: PreparedStep, objective: Objective, rate: float
    ) -> UpdateResult:
        started, samples = time.perf_counter(), step.samples
        weights = objective.token_weights(samples)
        live = [i for i, s in enumerate(samples) if objective.has_gradient(s)]
        batches = pack(
            [samples[i] for i in live],
            [weights[i] for i in live],
            self.settings.memory.tokens_per_batch,
            self.ranks.count,
        )
        own = StepSums()
        self._zero_grad()
        for batch in batches[self.ranks.rank :: self.ranks.count]:
            loss = objective.loss(self.network, moved(batch, self.model.device))
            self._backward(loss.loss)
            own.add(batch, loss)  # waits for the GPU: there is work queued by now
        own_norm = self._gradient_norm()
        sums = StepSums.over(self.ranks.gather(own))
        # Each rank holds a share of every gradient: their squares add up.
        norms = torch.stack(self.ranks.gather(own_norm.cpu()))
        grad_norm = torch.linalg.vector_norm(norms) if len(norms) > 1 else norms[0]
        self._refuse_non_finite(sums.loss, grad_norm)
        self._apply(rate, grad_norm)
        return UpdateResult(
            loss=sums.loss,
            grad_norm=grad_norm.item(),
            learning_rate=rate,
            tokens=sums.tokens,
            sequences=len(live),
            skipped_sequences=len(samples) - len(live),
            seconds=time.perf_counter() - started,
            means={**{k: total / sums.tokens for k, total in sums.totals.items()}, **step.means},
            largest=sums.largest,
        )

    def _refuse_bad_samples(self, samples: Sequence[TrainSample]) -> None:
        """Raise, on all ranks alike, if a sample brings a number that is not finite."""
        for sample in samples:
            numbers = {
                "advantage": sample.advantages,
                "weight": (sample.weight,),
                "sampler log-prob": sample.logprobs,
                "return": sample.returns or (),
                "value": sample.values or (),
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
            f"{self.rate_setting}"
        )
