"""What an update is made of: samples, packed into batches, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch  # the types are also used where nothing heavy should be imported

    from ttrl.types.top_logprobs import TopLogprobs


@dataclass(frozen=True, slots=True)
class TrainSample:
    """A sequence chosen for training, of which some tokens are trained.

    Example: the prompt ``(5, 6)`` and its answer ``(7, 1)``, which is a little better than its
    group, are ``TrainSample("q", (5, 6, 7, 1), (False, False, True, True), (-0.1, -2.3),
    (0.5, 0.5))``.
    """

    question_id: str
    """The question that the sequence answers."""
    token_ids: tuple[int, ...]
    """All tokens, context and trained ones."""
    trained: tuple[bool, ...]
    """Which of ``token_ids`` are trained; never the first, which is predicted from nothing."""
    logprobs: tuple[float, ...]
    """Per trained token, the log-prob that the sampler gave it."""
    advantages: tuple[float, ...]
    """Per trained token, how much better it was than expected."""
    weight: float = 1.0
    """Factor of the loss of every token."""
    old_logprobs: tuple[float, ...] | None = None
    """Per trained token, the policy's own log-prob before the updates of this rollout; None: not
    computed, because nothing needs it."""
    temperature: float | None = None
    """The sampling temperature, see `Completion.temperature`."""
    returns: tuple[float, ...] | None = None
    """Per trained token, the reward from there to the end; None: nothing is trained to know it."""
    values: tuple[float, ...] | None = None
    """Per trained token, what a critic expected of ``returns``; None: nothing needs it."""
    policy_factors: tuple[float, ...] | None = None
    """Per trained token, a factor of its policy term, which leaves KL and entropy terms and every
    mean as they are; None: 1, of all samples."""
    ratio_penalties: tuple[float, ...] | None = None
    """Per trained token, the weight of abs(log ratio) in its loss; None: 0, of all samples."""
    support: TopLogprobs | None = None
    """Per trained token, what could have been drawn in its place; see `Completion.support`."""
    policy: int = 0
    """Which of the run's policies wrote it, and is trained on it; see `Turn.policy`."""

    @property
    def prompt_length(self) -> int:
        """The number of tokens before the first trained one."""
        return self.trained.index(True)

    @classmethod
    def of_answer(
        cls,
        question_id: str,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        logprobs: Sequence[float],
        advantage: float,
        weight: float = 1.0,
        temperature: float | None = None,
        support: TopLogprobs | None = None,
    ) -> TrainSample:
        """Make the sample of one answer, whose tokens are all trained and all worth the same."""
        length = len(completion_ids)
        return cls(
            question_id=question_id,
            token_ids=(*prompt_ids, *completion_ids),
            trained=(False,) * len(prompt_ids) + (True,) * length,
            logprobs=tuple(logprobs),
            advantages=(advantage,) * length,
            weight=weight,
            temperature=temperature,
            support=support,
        )


@dataclass(frozen=True, slots=True, eq=False)  # known by what it is, not by its tensors
class PackedSequences:
    """Which rows of a packed batch see which: S sequences, each causal up to its last key.

    The last row of a sequence sees all of its keys, the row before it all but the last one, and so
    on. A sequence is what a sample has of its own; the keys of what it shares with others, its
    prompt above all, come before its own.

    Example: the prompt ``(5, 6)`` with the answers ``(7, 1)`` and ``(8, 9, 1)`` has the rows
    ``5 6 7 8 9``: ``ends=[0, 3, 5]``, ``longest=3``, ``keys_K=[0, 1, 2, 0, 1, 3, 4]``,
    ``key_ends=[0, 3, 7]``, ``longest_keys=4``.
    """

    ends: torch.Tensor
    """int32, S + 1 entries: sequence s is rows ``ends[s]:ends[s + 1]``."""
    longest: int
    """Rows of the longest sequence."""
    keys_K: torch.Tensor | None = None
    """int64: the rows that are the sequences' keys; None: each sequence's own."""
    key_ends: torch.Tensor | None = None
    """int32, S + 1 entries: the keys of sequence s are ``keys_K[key_ends[s]:key_ends[s + 1]]``."""
    longest_keys: int = 0
    """Keys of the sequence that has most."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A micro-batch: R rows that go through the model, and the T trained tokens that they predict.

    The trained tokens are those of its samples, one sample after the other. What samples begin with
    in common has its rows once: the last one of a prompt predicts the first token of every answer.
    The last token of a sample is only a target: nothing is predicted from it, so it has no row.

    Example: the sample of `TrainSample` alone has ``token_ids_R=[5, 6, 7]``, ``positions_R=[0, 1,
    2]``, one sequence, ``rows_T=[1, 2]``, ``samples_T=[0, 0]``, ``targets_T=[7, 1]``,
    ``advantages_T=[0.5, 0.5]`` and, for the mean over its two trained tokens,
    ``token_weights_T=[0.5, 0.5]``.
    """

    token_ids_R: torch.Tensor
    """int64: the tokens."""
    positions_R: torch.Tensor
    """int64: the tokens' places in their samples, from 0."""
    sequences: PackedSequences
    """Which rows see which."""
    samples: int
    """How many there are."""
    rows_T: torch.Tensor
    """int64: the row that each trained token is predicted from."""
    samples_T: torch.Tensor
    """int64: the sample that it belongs to, from 0."""
    targets_T: torch.Tensor
    """int64: the token."""
    sampler_logp_T: torch.Tensor
    """float32: the log-probability that the sampler gave it."""
    old_logp_T: torch.Tensor | None
    """float32: the policy's own log-prob before this rollout's updates; None: not computed."""
    advantages_T: torch.Tensor
    """float32: the advantages."""
    token_weights_T: torch.Tensor
    """float32: mask and aggregation; the loss is the sum of weight x token loss."""
    temperature_T: torch.Tensor | None = None
    """float32: what each token was sampled at, 0 for ``rollout.temperature``; None: all were at
    that."""
    returns_T: torch.Tensor | None = None
    """float32: see `TrainSample.returns`."""
    values_T: torch.Tensor | None = None
    """float32: see `TrainSample.values`."""
    policy_factors_T: torch.Tensor | None = None
    """float32: see `TrainSample.policy_factors`."""
    ratio_penalty_T: torch.Tensor | None = None
    """float32: see `TrainSample.ratio_penalties`."""
    support_TM: torch.Tensor | None = None
    """int32: ids of the tokens that could have been drawn, padded with -1, which is all of a row
    where every one could; None: no sample has a `TrainSample.support`."""


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """The figures of one optimizer step.

    Example: ``UpdateResult(loss=-0.5, grad_norm=0.3, learning_rate=5e-7, tokens=2, sequences=1,
    skipped_sequences=0, seconds=0.1)`` trained on one sample of two tokens.
    """

    loss: float
    """The whole objective."""
    grad_norm: float
    """Global L2 norm before clipping."""
    learning_rate: float
    """The learning rate of this step."""
    tokens: int
    """Trained tokens."""
    sequences: int
    """Trained sequences."""
    skipped_sequences: int
    """Sequences without a gradient: counted in the means of the loss, but not computed."""
    seconds: float
    """Wall-clock time."""
    means: Mapping[str, float] = field(default_factory=dict)
    """The objective's figures by name, means over the trained tokens; see docs/metrics.md."""
    largest: Mapping[str, float] = field(default_factory=dict)
    """The objective's figures by name, their largest over the trained tokens."""
