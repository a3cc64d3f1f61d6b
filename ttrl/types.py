"""The data that flows through a run, in the order in which it appears.

    Question -> CompletionGroup -> Ballot -> Estimate -> TrainSample -> PackedBatch -> UpdateResult

Shapes are named by suffix: ``_G`` one entry per completion of a group, ``_S`` one per sequence,
``_T`` one per packed token. A `Question` has no field for an answer, so nothing that trains on
questions can read one; reference answers live in an `AnswerKey`, which only evaluation and
metrics receive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch  # the types are also used where nothing heavy should be imported


class WeightSource(Protocol):
    """A policy, or a teacher, as far as its weights matter."""

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All parameters, by the names that a rollout engine knows them by; tied ones once."""
        ...


class UserError(Exception):
    """Something that the user can put right; the command line prints it as one line.

    The message says what was wrong, what was given, what was expected, and what to do.
    """


@dataclass(frozen=True, slots=True)
class Question:
    """One unlabeled question, ready for the model."""

    id: str
    """Unique within its data set."""
    prompt: str
    """The text that the model reads, with system prompt, suffix and chat template applied."""
    prompt_ids: tuple[int, ...]
    """``prompt`` as token ids."""


@dataclass(frozen=True, slots=True)
class AnswerKey:
    """Reference answers, for evaluation and metrics only."""

    answers: Mapping[str, str] = field(default_factory=dict)
    """Question id -> reference answer; questions without one are absent."""
    levels: Mapping[str, str] = field(default_factory=dict)
    """Question id -> difficulty level, where the data set has levels."""


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    """The model wrote its end-of-sequence token."""
    LENGTH = "length"
    """``max_new_tokens`` was reached: the completion is truncated."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer."""

    token_ids: tuple[int, ...]
    """The generated tokens, with the end-of-sequence token if it was written."""
    logprobs: tuple[float, ...]
    """Per generated token, log-probability under the distribution that it was sampled from."""
    text: str
    """``token_ids`` decoded, without special tokens. Hostile: never evaluated."""
    finish_reason: FinishReason
    """Why it ended."""


@dataclass(frozen=True, slots=True)
class CompletionGroup:
    """All sampled answers to one question."""

    question: Question
    """What was asked."""
    completions: tuple[Completion, ...]
    """In sample order: completion ``i`` depends on the seed (step, question, i) alone."""
    policy_version: int
    """How many weight pushes the engine had received when it sampled this group."""


@dataclass(frozen=True, slots=True)
class Vote:
    """The outcome of a majority vote over one group.

    Example: the answers ``("7", "7.0", None, "8")`` give ``clusters_G=(0, 0, None, 1)``,
    ``counts=(2, 1)``, ``names=("7", "8")``, ``majority="7"``, ``share=0.5``, ``margin=0.25``,
    ``abstained=1``.
    """

    answers_G: tuple[str | None, ...]
    """The extracted answers; None is an abstention."""
    clusters_G: tuple[int | None, ...]
    """Per answer, its equivalence class: an index into ``counts``; None for an abstention."""
    counts: tuple[int, ...]
    """Votes per equivalence class, largest first."""
    names: tuple[str, ...]
    """Per equivalence class, the canonical form that names it."""
    majority: str | None
    """The winning class's most common spelling; None if everybody abstained."""
    share: float
    """Votes for the winner / all votes, abstentions included (the paper's majority ratio)."""
    margin: float
    """(winner - runner-up) / all votes."""
    abstained: int
    """How many gave no answer."""
    tied: bool
    """Whether another class had as many votes as the winner."""
    undecided: int = 0
    """Voters whose answer the symbolic stage could not read in time: compared by spelling only."""


@dataclass(frozen=True, slots=True)
class Visit:
    """How a question was voted on in an earlier step."""

    step: int
    """When."""
    label: str | None
    """The label of that step."""
    share: float
    """`Vote.share` of that step."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """All that a reward estimator learns about one question; a reference answer is not part of it.

    (Unless the user asked for labels = "ground_truth": then ``label`` is one.)
    """

    group: CompletionGroup
    """The sampled answers."""
    vote: Vote
    """Their vote."""
    label: str | None
    """What agreement is measured against: the voters' majority, or what another label source
    (``reward.labels``) says; None if there is none."""
    agrees_G: tuple[bool, ...]
    """Which answers are equivalent to ``label``; an abstention never is."""
    history: tuple[Visit, ...] = ()
    """Earlier visits to this question, oldest first."""
    stream: tuple[int | str, ...] = ()
    """For estimators that draw random numbers: pass it to `ttrl.system.rng.generator`."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a reward estimator makes of one group."""

    vote: Vote
    """The vote that it is based on; its answers and classes are also what metrics look at."""
    rewards_G: tuple[float, ...]
    """Reward per completion."""
    label: str | None
    """The pseudo-label; None where nothing was elected."""
    advantages_G: tuple[float, ...] | None = None
    """The estimator's own advantages; None leaves them to the advantage setting."""
    keep_G: tuple[bool, ...] | None = None
    """Which completions may be trained on; None keeps all."""
    weight: float = 1.0
    """Weight of this question in the loss."""
    confidence: float = 0.0
    """How far the estimator trusts its label, 0 to 1."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Further label-free figures of this estimator, averaged over the step's questions."""


@dataclass(frozen=True, slots=True)
class TrainSample:
    """One completion chosen for training."""

    question_id: str
    """Which question it answers."""
    prompt_ids: tuple[int, ...]
    """Context: not trained on."""
    completion_ids: tuple[int, ...]
    """Trained on."""
    logprobs: tuple[float, ...]
    """The sampler's log-probabilities of ``completion_ids``."""
    advantage: float
    """The same for every token of the completion."""
    weight: float = 1.0
    """Multiplies the loss of every token of the completion."""
    old_logprobs: tuple[float, ...] | None = None
    """The policy's own log-probabilities of ``completion_ids`` before the updates of this rollout;
    None: not computed, because nothing needs them."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A micro-batch: S whole sequences, one after the other, T tokens in all.

    Row ``t`` predicts ``targets_T[t]`` from the tokens up to and including ``token_ids_T[t]``;
    rows with nothing to learn (inside prompts) have the target -100 and weight 0. The last token
    of a completion is only a target: nothing is predicted from it, so it has no row.
    """

    token_ids_T: torch.Tensor
    """int64."""
    positions_T: torch.Tensor
    """int64, from 0 in each sequence."""
    cu_seqlens: torch.Tensor
    """int32, S + 1 entries: sequence s is rows ``cu_seqlens[s]:cu_seqlens[s + 1]``."""
    longest: int
    """Rows of the longest sequence."""
    targets_T: torch.Tensor
    """int64: the next token, or -100."""
    sampler_logp_T: torch.Tensor
    """float32: the sampler's log-probability of the target; 0 where there is none."""
    old_logp_T: torch.Tensor | None
    """float32: the policy's own before the updates of this rollout; None: not computed."""
    advantages_T: torch.Tensor
    """float32."""
    token_weights_T: torch.Tensor
    """float32: mask and aggregation; the loss is the sum of weight x token loss."""


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What one optimizer step did; token means are over the trained tokens of the step."""

    loss: float
    """The policy loss, all terms."""
    grad_norm: float
    """Global L2 norm before clipping."""
    learning_rate: float
    """As used in this step."""
    clip_fraction: float
    """Share of tokens whose gradient the PPO clip cut off."""
    kl: float
    """Mean KL estimate against the reference policy; 0 where there is no KL term."""
    entropy: float
    """Mean entropy of the next-token distribution, in nats."""
    sampler_kl: float
    """Mean of k3 = exp(d) - d - 1, d = trainer - sampler log-prob, before this step: a mismatch
    between engine and trainer; from a rollout's second update on, the drift of the updates too."""
    sampler_log_ratio: float
    """Mean of d, in nats, whatever the correction makes of it."""
    sampler_max_gap: float
    """Largest |d|."""
    corrected: float
    """Share of tokens whose sampler ratio the correction has cut off or masked."""
    tokens: int
    """Trained tokens."""
    sequences: int
    """Trained sequences."""
    skipped_sequences: int
    """Sequences with no gradient (weight 0, or advantage 0 without KL and entropy terms): counted
    in the means of the loss, but not computed."""
    seconds: float
    """Wall-clock time."""
