"""The rollout pool: questions in, groups of completions out, whatever engine generates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from statistics import fmean
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from ttrl.rollout.agreement import LIMIT, Agreement, compare
from ttrl.rollout.engines import ENGINES
from ttrl.rollout.engines.base import CountingEngine, Engine
from ttrl.rollout.engines.remote_engine import RemoteEngine
from ttrl.rollout.sampling import SamplingParams
from ttrl.settings import Settings
from ttrl.system.balance import balance
from ttrl.system.ranks import Ranks
from ttrl.types import (
    Completion,
    CompletionGroup,
    Question,
    TrainSample,
    UserError,
    WeightSource,
)

ROUNDS = 4
"""Rounds of sampling, after which it may stop early: each waits for its longest answer."""


class LogProbSource(Protocol):
    """A policy that can be asked what it makes of some answers."""

    def logprobs(self, samples: Sequence[TrainSample]) -> list[tuple[float, ...]]:
        """Compute the log-prob of each trained token, at the temperature of the rollouts."""
        ...


class RolloutPool:
    """Keeps an engine at the policy's weights and samples from it."""

    def __init__(
        self, engine: Engine, ranks: Ranks | None = None, sharing: Ranks | None = None
    ) -> None:
        """Take an engine, at the weights that it was loaded with.

        Args:
            engine: this rank's.
            ranks: all of them; each samples its share of the questions. None: there is only one.
            sharing: those of them that share this engine (tensor parallel), see `Ranks.neighbours`.
                None: only this one.
        """
        self._engine = engine
        self._ranks = ranks or Ranks()
        self._sharing = sharing or Ranks()
        self._lengths: dict[str, float] = {}
        self.policies: Sequence[WeightSource] = ()
        """The run's policies, where each agent has its own: `SamplingParams.policy` names one."""
        self._held: WeightSource | None = None
        """Whose weights were pushed last."""
        self.policy_version = 0
        """The number of weight pushes that the engine has received; to bring it from one agent's
        weights to another's is none, as nobody has learned anything in between."""

    @property
    def engines(self) -> int:
        """The number of engines that share the work."""
        return self._ranks.count // self._sharing.count

    def push_weights(self, policy: WeightSource) -> None:
        """Bring the engine to the policy's present weights."""
        self._load(policy)
        self.policy_version += 1

    def _load(self, policy: WeightSource) -> None:
        self._engine.load_weights(policy.named_weights())
        self._held = policy

    def _turn_to(self, number: int) -> None:
        """Bring the engine to the weights of that one of `policies`, if it has others."""
        if not self.policies:
            if number:
                raise ValueError(f"policy {number} was asked for, and there is one for all")
        elif (policy := self.policies[number]) is not self._held:
            self._load(policy)

    def verify(
        self,
        policy: LogProbSource,
        questions: Sequence[Question],
        params: SamplingParams,
        dtype: str,
    ) -> Agreement:
        """Refuse an engine, in ``dtype``, that computes another model than the policy.

        Raises:
            UserError: if the `agreement` is worse than rounding makes it, whatever the reason:
                training would be silently wrong.
        """
        found = self.agreement(policy, questions, params)
        if not found.holds(dtype):
            raise UserError(
                f"{type(self._engine).__name__} computes another model than "
                f"{type(policy).__name__}: over {found.tokens} sampled tokens their logits differ "
                f"by {found.logits:.3g}, expected at most {LIMIT[dtype]:.3g} for rounding in "
                f"{dtype} (log-probs: mean |Δ| {found.mean:.3g}, max {found.largest:.3g} nats). "
                "Try another rollout.engine, or model.dtype"
            )
        return found

    def agreement(
        self, policy: LogProbSource, questions: Sequence[Question], params: SamplingParams
    ) -> Agreement:
        """Sample a little, and compare the engine's log-probs with the policy's.

        Nothing that is sampled later depends on it.

        Args:
            policy: whose weights were pushed last.
            questions: what to ask; at least one for each of the pool's engines.
            params: how to sample, at the policy's temperature; few and short answers will do.
        """
        lengths = dict(self._lengths)  # those of whole answers: they decide who samples what
        groups = self.sample(questions, params)
        self._lengths = lengths
        samples = [
            TrainSample.of_answer(
                g.question.id,
                g.question.prompt_ids,
                c.token_ids,
                c.logprobs,
                0.0,
                support=c.support,
            )
            for g in groups
            for c in g.completions
        ]
        engine = list(chain.from_iterable(sample.logprobs for sample in samples))
        own = list(chain.from_iterable(policy.logprobs(samples)))
        return compare(engine, own, params.temperature)

    def sleep(self) -> None:
        """Let the engine give back its memory; `push_weights` wakes it."""
        self._engine.sleep()

    def state(self) -> dict[str, Any]:
        """Return what decides who samples which question, and what its groups say, as JSON."""
        return {"policy_version": self.policy_version, "lengths": dict(self._lengths)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.policy_version, self._lengths = state["policy_version"], dict(state["lengths"])

    def forget(self, questions: Sequence[Question]) -> None:
        """Drop what is expected of questions that are not asked again."""
        for question in questions:
            self._lengths.pop(question.id, None)

    def close(self) -> None:
        """End the engine; nothing is sampled afterwards."""
        self._engine.close()

    def sample(
        self,
        questions: Sequence[Question],
        params: SamplingParams,
        on_group: Callable[[CompletionGroup], None] = lambda group: None,
        decided: Callable[[Sequence[Completion], int], bool] | None = None,
    ) -> list[CompletionGroup]:
        """Sample every question ``params.n`` times; all ranks must ask for the same.

        Args:
            questions: what to ask.
            params: how to sample.
            on_group: called with each group that this rank samples, as soon as it is complete, in
                any order.
            decided: says of a question's completions so far and the number still to come whether
                the rest need not be sampled; asked after each of `ROUNDS` rounds.

        Returns:
            One group per question, in the order of ``questions``.
        """
        self._turn_to(params.policy)
        expected = [self._lengths.get(q.id, float(params.max_new_tokens)) for q in questions]
        share = balance(expected, self.engines)[self._ranks.rank // self._sharing.count]
        mine = self._sample([questions[i] for i in share], params, on_group, decided)
        parts = self._ranks.gather(mine)[:: self._sharing.count]
        groups = {g.question.id: g for part in parts for g in part}
        for group in groups.values():
            self._lengths[group.question.id] = fmean(len(c.token_ids) for c in group.completions)
        return [groups[q.id] for q in questions]

    def _sample(
        self,
        questions: Sequence[Question],
        params: SamplingParams,
        on_group: Callable[[CompletionGroup], None],
        decided: Callable[[Sequence[Completion], int], bool] | None,
    ) -> list[CompletionGroup]:
        """Sample this rank's questions; return their groups in any order."""
        groups: dict[int, CompletionGroup] = {}
        sampled: dict[int, tuple[Completion, ...]] = dict.fromkeys(range(len(questions)), ())

        def finish(i: int) -> None:
            groups[i] = CompletionGroup(questions[i], sampled[i], self.policy_version)
            on_group(groups[i])

        size = params.n if decided is None else -(-params.n // ROUNDS)
        for first in range(0, params.n, size):
            part = replace(params, n=min(size, params.n - first), first=params.first + first)
            asked = [i for i in sampled if i not in groups]
            settled: list[int] = []
            for place, completions in self._engine.sample([questions[i] for i in asked], part):
                i = asked[place]
                sampled[i] += completions
                rest = params.n - len(sampled[i])
                if rest == 0:
                    finish(i)
                elif decided is not None and self._sharing.is_main and decided(sampled[i], rest):
                    settled.append(i)
            # It may depend on a deadline, and all who share an engine must ask it for the same.
            for i in self._sharing.gather(settled)[0]:
                finish(i)
        return list(groups.values())


def make_pool(
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    ranks: Ranks | None = None,
    *,
    load_weights: bool = True,
) -> RolloutPool:
    """Make the pool that the settings ask for, with an engine on each of ``ranks``.

    With ``load_weights`` it starts from ``model.path``; else weights must be pushed first.
    """
    ranks = ranks or Ranks()
    if settings.rollout.placement == "separate":
        return RolloutPool(RemoteEngine(settings, ranks, load_weights=load_weights), ranks)
    engine = make_engine(settings, tokenizer, ranks, load_weights=load_weights)
    # A process alone shares with nobody: `ttrl eval` takes any run's settings.
    shared = settings.rollout.tensor_parallel if ranks.count > 1 else 1
    return RolloutPool(engine, ranks, ranks.neighbours(shared))


def make_engine(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, ranks: Ranks, *, load_weights: bool
) -> CountingEngine:
    """Make the engine that ``rollout.engine`` names, in this process; see `make_pool`."""
    return ENGINES[settings.rollout.engine](settings, tokenizer, ranks, load_weights=load_weights)


@contextmanager
def closed_at_the_end(pool: RolloutPool, ranks: Ranks) -> Iterator[None]:
    """Close the pool at the end of this context; with several ranks, not after an error.

    vLLM's end is that of the groups of processes that it is in: it waits for the other ranks, and
    they may be waiting for what this one was about to do. It leaves (`ttrl.cli.main`), and its
    launcher ends them.
    """
    try:
        yield
    except BaseException:
        if ranks.count == 1:
            pool.close()
        raise
    pool.close()
