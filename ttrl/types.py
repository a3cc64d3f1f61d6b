"""The data that flows through a run, in the order in which it appears.

    Question -> CompletionGroup -> VotedGroup -> Estimate
             -> TrainSample -> PackedBatch -> UpdateResult

Shapes are named by suffix: ``_G`` one entry per completion of a group, ``_S`` one per sequence,
``_T`` one per packed token. A `Question` has no field for an answer, so nothing that trains on
questions can read one; reference answers live in an `AnswerKey`, which only evaluation and
metrics receive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch  # the types are also used where nothing heavy should be imported

    from ttrl.top_logprobs import TopLogprobs


class WeightSource(Protocol):
    """A policy, or a teacher, as far as its weights matter.

    Example: ``dict(policy.named_weights())["lm_head.weight"]`` is the output matrix, unless it is
    the embedding, too.
    """

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all parameters, by the names that an engine knows them by; tied ones once."""
        ...


class UserError(Exception):
    """Something that the user can put right; the command line prints it as one line.

    The message says what was wrong, what was given, what was expected, and what to do.

    Example: ``UserError("--k 32: expected at most evaluation.samples = 16; raise it")``.
    """


@dataclass(frozen=True, slots=True)
class Question:
    """One unlabeled question, ready for the model.

    Example: ``Question("q1", "What is 3 + 4?", (5, 6))``.
    """

    id: str
    """Unique within its data set."""
    prompt: str
    """The text that the model reads, with system prompt, suffix and chat template applied."""
    prompt_ids: tuple[int, ...]
    """``prompt`` as token ids."""
    text: str | None = None
    """What was asked, without suffix and chat template, for prompts of a label source's own; None:
    a conversation, or a source that does not say."""


@dataclass(frozen=True, slots=True)
class AnswerKey:
    """Reference answers, for evaluation and metrics only.

    Example: ``AnswerKey({"q1": "7"}, {"q1": "1"})``: the answer to question q1, of level 1, is 7.
    """

    answers: Mapping[str, str] = field(default_factory=dict)
    """Question id -> reference answer; questions without one are absent."""
    levels: Mapping[str, str] = field(default_factory=dict)
    """Question id -> difficulty level, where the data set has levels."""


class FinishReason(StrEnum):
    """Why a completion ended.

    Example: ``FinishReason("length") is FinishReason.LENGTH``.
    """

    STOP = "stop"
    """The model wrote its end-of-sequence token."""
    LENGTH = "length"
    """``max_new_tokens`` was reached: the completion is truncated."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer.

    Example: with 1 for the end of a sequence, ``Completion((7, 1), (-0.1, -2.3), "7",
    FinishReason.STOP)``; without it, ``Completion((7,), (-0.1,), "7", FinishReason.LENGTH)``.
    """

    token_ids: tuple[int, ...]
    """The generated tokens, with the end-of-sequence token if it was written."""
    logprobs: tuple[float, ...]
    """Per generated token, log-probability under the distribution that it was sampled from."""
    text: str
    """``token_ids`` decoded, without special tokens. Hostile: never evaluated."""
    finish_reason: FinishReason
    """Why the completion ended."""
    temperature: float | None = None
    """Temperature of a workflow's own, if not ``rollout.temperature``: the loss uses the same."""
    top_logprobs: TopLogprobs | None = None
    """Per generated token, the likeliest ones in its place, if they were asked for."""

    @property
    def support(self) -> TopLogprobs | None:
        """All tokens that could have been drawn, place by place; None: every one could."""
        top = self.top_logprobs
        return top if top is not None and top.whole else None


@dataclass(frozen=True, slots=True)
class CompletionGroup:
    """All sampled answers to one question.

    Example: ``CompletionGroup(question, (first, second), policy_version=1)`` holds two completions,
    sampled after one push of weights.
    """

    question: Question
    """The question that was asked."""
    completions: tuple[Completion, ...]
    """Answers in sample order: completion ``i`` depends on the seed (step, question, i) alone."""
    policy_version: int
    """The number of weight pushes the engine had received when it sampled this group."""
    greedy: Completion | None = None
    """The most probable answer, token by token, where ReMax compares with it. It does not vote, and
    is not trained on."""
    passes: tuple[CompletionGroup, ...] = ()
    """What the label source has asked the policy about this question, see
    `ttrl.rewards.free_pass`. None of it votes here, or is trained on."""


@dataclass(frozen=True, slots=True)
class Vote:
    """The outcome of a majority vote over one group.

    Example: the answers ``("7", "7.0", None, "8")`` give ``clusters_G=(0, 0, None, 1)``,
    ``counts=(2, 1)``, ``names=("7", "8")``, ``majority="7"``, ``majority_ratio=0.5``,
    ``margin=0.25``, ``abstained=1``.
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
    majority_ratio: float
    """Votes for the winner / all votes, abstentions included (the paper's majority ratio)."""
    margin: float
    """(winner - runner-up) / all votes."""
    abstained: int
    """The number of completions without an answer."""
    tied: bool
    """Whether another class had as many votes as the winner."""
    undecided: int = 0
    """Voters whose answer the symbolic stage could not read in time: compared by spelling only."""


@dataclass(frozen=True, slots=True)
class PastVote:
    """The vote on a question in an earlier step.

    Example: ``PastVote(step=3, label="7", majority_ratio=0.5)``.
    """

    step: int
    """The training step."""
    label: str | None
    """The label of that step."""
    majority_ratio: float
    """`Vote.majority_ratio` of that step."""
    changed: bool = False
    """Whether the label was another one than at the visit before."""


@dataclass(frozen=True, slots=True)
class VotedGroup:
    """All that a reward estimator learns about one question; a reference answer is not part of it.

    (Unless the user asked for labels = "ground_truth": then ``label`` is one.)

    Example: the answers ``("7", "7.0", None, "8")`` with their own majority as the label are
    ``VotedGroup(group, vote, label="7", agrees_G=(True, True, False, False))``.
    """

    group: CompletionGroup
    """The sampled answers."""
    vote: Vote
    """The vote of the answers."""
    label: str | None
    """What agreement is measured against: the voters' majority, or what another label source
    (``reward.labels``) says; None if there is none."""
    agrees_G: tuple[bool, ...]
    """Which answers are equivalent to ``label``; an abstention never is."""
    history: tuple[PastVote, ...] = ()
    """Earlier visits to this question, oldest first."""
    changed: bool = False
    """Whether ``label`` is another one than at the last of them."""
    stream: tuple[int | str, ...] = ()
    """Stream of random numbers, to pass to `ttrl.system.rng.generator`."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A reward estimator's result for one group.

    Example: the majority's reward for the answers ``("7", "7.0", None, "8")`` is
    ``Estimate(vote, rewards_G=(1.0, 1.0, 0.0, 0.0), label="7", confidence=0.5)``.
    """

    vote: Vote
    """The vote behind the estimate; its answers and classes are also what metrics look at."""
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
    extra_rewards: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Rewards per completion of ``reward.extra``, by name; not of the estimator."""
    greedy_reward: float | None = None
    """Reward of `CompletionGroup.greedy`, if there is one; not of the estimator."""
    labels_G: tuple[str | None, ...] | None = None
    """The label of each completion, where they have their own; ``label`` is then that of most.
    None: ``label`` is that of all."""


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


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A micro-batch: S whole sequences, one after the other, T tokens in all.

    Row ``t`` predicts ``targets_T[t]`` from the tokens up to and including ``token_ids_T[t]``;
    rows with nothing to learn (inside prompts) have the target -100 and weight 0. The last token
    of a completion is only a target: nothing is predicted from it, so it has no row.

    Example: the sample of `TrainSample` alone has ``token_ids_T=[5, 6, 7]``, ``positions_T=[0, 1,
    2]``, ``cu_seqlens=[0, 3]``, ``longest=3``, ``targets_T=[-100, 7, 1]``, ``advantages_T=[0, 0.5,
    0.5]`` and, for the mean over its two trained tokens, ``token_weights_T=[0, 0.5, 0.5]``.
    """

    token_ids_T: torch.Tensor
    """int64: the tokens."""
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
    """float32: the policy's own log-prob before this rollout's updates; None: not computed."""
    advantages_T: torch.Tensor
    """float32: the advantages; 0 where there is no target."""
    token_weights_T: torch.Tensor
    """float32: mask and aggregation; the loss is the sum of weight x token loss."""
    temperature_T: torch.Tensor | None = None
    """float32: what each token was sampled at, 0 for ``rollout.temperature``; None: all were at
    that."""
    returns_T: torch.Tensor | None = None
    """float32: see `TrainSample.returns`; 0 where there is no target."""
    values_T: torch.Tensor | None = None
    """float32: see `TrainSample.values`; 0 where there is no target."""
    policy_factors_T: torch.Tensor | None = None
    """float32: see `TrainSample.policy_factors`; 0 where there is no target."""
    ratio_penalty_T: torch.Tensor | None = None
    """float32: see `TrainSample.ratio_penalties`; 0 where there is no target."""
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


@dataclass(frozen=True, slots=True)
class StepResult:
    """A training step as callbacks see it.

    Example: ``result.metrics["vote/majority_ratio"]``, ``result.groups[0].completions[0].text``,
    ``result.estimates[0].label``.
    """

    step: int
    """Counted from 1."""
    groups: Sequence[CompletionGroup]
    """The step's answers."""
    estimates: Sequence[Estimate]
    """What they are worth, one per group."""
    metrics: dict[str, float]
    """The step's line in ``metrics.jsonl``."""
