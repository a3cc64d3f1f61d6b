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

from ttrl.types.turn import Turn, Verdict
from ttrl.types.update import PackedBatch, PackedSequences, TrainSample, UpdateResult

if TYPE_CHECKING:
    import torch  # the types are also used where nothing heavy should be imported

    from ttrl.types.top_logprobs import TopLogprobs


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
    UNSURE = "unsure"
    """Its confidence fell below the least that was asked for: broken off, it never votes."""


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
    turn: Turn | None = None
    """Where it stands among the answers of several agents; None: it has read the question alone."""

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

    @property
    def parts(self) -> list[list[int]]:
        """Indices of the completions, by what may be compared: those of the same `part_of`."""
        found: dict[tuple[int, str, int | None] | None, list[int]] = {}
        for i, completion in enumerate(self.completions):
            found.setdefault(part_of(completion), []).append(i)
        return list(found.values())

    def prompt_of(self, i: int) -> Question:
        """Return what the i-th completion answers: the question, or a later turn's prompt."""
        turn = self.completions[i].turn
        return self.question if turn is None or turn.asked is None else turn.asked


def part_of(completion: Completion) -> tuple[int, str, int | None] | None:
    """Return turn, role and policy of a completion; None: it has no turn."""
    turn = completion.turn
    return None if turn is None else (turn.index, turn.role, turn.policy)


def writer_of(completion: Completion) -> int:
    """Return which of the run's policies wrote a completion; 0 where there is one for all."""
    turn = completion.turn
    return 0 if turn is None or turn.policy is None else turn.policy


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
    """Per answer, its equivalence class: an index into ``counts``; None for an abstention, and for
    an answer without a vote (`voters_G`) that no voter has given."""
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
    """The number of voters without an answer."""
    tied: bool
    """Whether another class had as many votes as the winner."""
    undecided: int = 0
    """Voters whose answer the symbolic stage could not read in time: compared by spelling only."""
    voters_G: tuple[bool, ...] | None = None
    """Which completions vote, where agents answer in turns and not all of them do; None: all.
    Counts, shares and the winner are of their votes alone."""

    @property
    def votes(self) -> int:
        """The number of all votes, abstentions included."""
        return len(self.answers_G) if self.voters_G is None else sum(self.voters_G)

    @property
    def cast_G(self) -> tuple[int | None, ...]:
        """Per completion, the class that it votes for; None: it abstains, or has no vote."""
        if self.voters_G is None:
            return self.clusters_G
        votes = zip(self.clusters_G, self.voters_G, strict=True)
        return tuple(cluster if has_one else None for cluster, has_one in votes)

    def backers(self, agrees_G: Sequence[bool]) -> int:
        """Count the votes that agree, of what is said of each completion."""
        voters_G = self.voters_G or (True,) * len(agrees_G)
        return sum(a and v for a, v in zip(agrees_G, voters_G, strict=True))


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
    shaped_G: tuple[float, ...] | None = None
    """Rewards of answers in turns by ``agents.shaping``, which advantages are computed of; not of
    the estimator. None: ``rewards_G``."""
    verdicts: Mapping[int, Verdict] = field(default_factory=dict)
    """By completion, what a verifier says of a solution, with ``agents.chain = "verdict"``. It has
    no answer and no vote, and is paid for being right; not of the estimator."""

    @property
    def worth_G(self) -> tuple[float, ...]:
        """What advantages are computed of: shaped rewards, where there are any."""
        return self.rewards_G if self.shaped_G is None else self.shaped_G


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


__all__ = [
    "AnswerKey",
    "Completion",
    "CompletionGroup",
    "Estimate",
    "FinishReason",
    "PackedBatch",
    "PackedSequences",
    "PastVote",
    "Question",
    "StepResult",
    "TrainSample",
    "Turn",
    "UpdateResult",
    "UserError",
    "Verdict",
    "Vote",
    "VotedGroup",
    "WeightSource",
    "part_of",
    "writer_of",
]
