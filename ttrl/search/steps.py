"""Step-level beam search, and diverse verifier tree search (DVTS).

Both write ``n`` solutions to a question, a step at a time. After each step a reward model scores
what is there, and only the best goes on, ``width`` times. They differ in what is compared:

- beam: all paths of a question. The best n/width of them go on. Where there are fewer, because the
  policy has often written the same, these share the n.
- dvts: the paths of a tree. There are n/width trees, and the best path of each goes on.

Equal paths are one in a beam: its best are different ones. A path that the policy has ended leaves,
and the beam looks for as many fewer. Both are those of search-and-learn (after arXiv 2408.03314),
whose beam may keep equal paths, and replaces finished ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from ttrl.reward_models import Reduction, RewardModel, reduce
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.sampling import SamplingParams
from ttrl.search.paths import Path
from ttrl.types import Completion, Question


@dataclass(frozen=True, slots=True)
class SearchParams:
    """How a search goes.

    Example: ``SearchParams(n=16, width=4, sampling=params)`` keeps four paths after each step.
    """

    n: int
    """Solutions per question, a multiple of ``width``."""
    width: int
    """How often a path that is kept goes on."""
    sampling: SamplingParams
    """How tokens are drawn, the tokens of a whole solution, and what the random numbers are derived
    from; ``n`` and ``first`` are not read."""
    steps: int = 40
    """Steps of a solution, after which it is cut off."""
    step_tokens: int = 2048
    """Tokens of a step, after which the solution is cut off."""
    reduce: Reduction = "last"
    """How the scores of a path's steps become one."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A solution that a search has written.

    Example: ``Solution("7+5=12", score=0.9, tokens=7, truncated=False)``.
    """

    text: str
    """Hostile: never evaluated."""
    score: float
    """The reward model's, from 0 to 1."""
    tokens: int
    """Its length."""
    truncated: bool
    """Whether it was cut off."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search of a question has found, and what that took.

    Example: ``max(found.solutions, key=lambda s: s.score).text``.
    """

    question: Question
    solutions: tuple[Solution, ...]
    """The first ones to end first."""
    tokens: int
    """Tokens that the policy has written, with those of paths that were dropped."""
    scored_tokens: int
    """Tokens of all paths that the reward model was shown, each time that it was."""


@dataclass(slots=True)
class _State:
    """A question's search: what goes on, and what has ended."""

    question: Question
    times: int
    """How often each live path goes on."""
    live: list[Path] = field(default_factory=lambda: [Path()])
    ended: list[Path] = field(default_factory=list)
    tokens: int = 0
    scored: int = 0


Kept = tuple[list[Path], int, list[Path]]
"""(paths that go on, how often each does, paths that end)"""
Keep = Callable[[Sequence[Sequence[Path]], int, SearchParams], Kept]
"""Function of the continuations of each live path, and the number of solutions that have ended
already."""


def keep_beam(continued: Sequence[Sequence[Path]], ended: int, params: SearchParams) -> Kept:
    """Keep a beam's best paths, of all; equal ones once. All that end are kept."""
    every = [path for paths in continued for path in paths]
    leaving = [path for path in every if path.ended]
    going = {path.token_ids: path for path in every if not path.ended}
    wanted = max(0, params.n - ended - len(leaving))
    kept = _best(list(going.values()))[: -(-wanted // params.width)]
    return kept, max(params.width, -(-wanted // max(1, len(kept)))), leaving


def keep_trees(continued: Sequence[Sequence[Path]], ended: int, params: SearchParams) -> Kept:
    """Keep the best path of each tree."""
    best = [_best(paths)[0] for paths in continued]
    going = [path for path in best if not path.ended]
    return going, params.width, [path for path in best if path.ended]


def _best(paths: Sequence[Path]) -> list[Path]:
    """Sort paths by their scores, the best first; of equal ones, the first stays so."""
    return sorted(paths, key=lambda path: -path.score)


SEARCHES: Mapping[str, Keep] = {"beam": keep_beam, "dvts": keep_trees}
"""Kinds of search, by name."""


def search(
    kind: str,
    pool: RolloutPool,
    model: RewardModel,
    questions: Sequence[Question],
    params: SearchParams,
) -> list[Found]:
    """Search for solutions to all questions, side by side; one rank alone.

    Args:
        kind: "beam" or "dvts".
        pool: the policy, with an engine that can end a completion at a string.
        model: scores the paths; a step ends as it says.
        questions: what is asked.
        params: how to search.

    Raises:
        ValueError: unless ``n`` is a multiple of ``width``.
    """
    if params.n < params.width or params.n % params.width:
        raise ValueError(f"n = {params.n}: expected a multiple of width = {params.width}")
    states = [_State(question, params.n) for question in questions]
    stream = (*params.sampling.stream, "search", kind)
    for step in range(params.steps):
        going = [state for state in states if _cut(state, params)]
        if not going:
            break
        continued = _continued(pool, model.step, going, step, params, stream)
        for state, written in zip(going, continued, strict=True):
            state.tokens += sum(len(c.token_ids) for c in chain.from_iterable(written))
            paths = [
                [path.then(c, model.step) for c in completions]
                for path, completions in zip(state.live, written, strict=True)
            ]
            scored = _scored(state, model, paths, params.reduce)
            if step == 0 and kind == "dvts":
                (whole,) = scored
                scored = [whole[i : i + params.width] for i in range(0, params.n, params.width)]
            kept = SEARCHES[kind](scored, len(state.ended), params)
            state.live, state.times = kept[:2]
            state.ended += kept[2]
    for state in states:
        state.ended += [replace(path, truncated=True) for path in state.live]
    return [
        Found(
            state.question,
            tuple(Solution(p.text, p.score, len(p.token_ids), p.truncated) for p in state.ended),
            state.tokens,
            state.scored,
        )
        for state in states
    ]


def _cut(state: _State, params: SearchParams) -> bool:
    """End the paths that have all their tokens; say whether others go on."""
    limit = params.sampling.max_new_tokens
    full = [path for path in state.live if len(path.token_ids) >= limit]
    state.ended += [replace(path, truncated=True, ended=True) for path in full]
    state.live = [path for path in state.live if len(path.token_ids) < limit]
    return bool(state.live)


def _continued(
    pool: RolloutPool,
    end: str,
    states: Sequence[_State],
    step: int,
    params: SearchParams,
    stream: tuple[int | str, ...],
) -> list[list[tuple[Completion, ...]]]:
    """Sample the next step of every live path: per state and path, its completions."""
    sampling = params.sampling
    longest = max(len(path.token_ids) for state in states for path in state.live)
    asking = replace(
        sampling,
        first=0,
        # As many for all, since an engine takes one number for a batch.
        max_new_tokens=min(params.step_tokens, sampling.max_new_tokens - longest),
        stop=(end, *(s for s in sampling.stop if s != end)),
        stream=stream,
    )
    by_times: dict[int, list[Question]] = {}  # an engine samples all of a batch as often
    for state in states:
        for place, path in enumerate(state.live):
            asked = path.question(state.question, f"{state.question.id}/{step}/{place}")
            by_times.setdefault(state.times, []).append(asked)
    groups = {}
    for times, asked_so_often in by_times.items():
        groups[times] = iter(pool.sample(asked_so_often, replace(asking, n=times)))
        pool.forget(asked_so_often)
    return [[next(groups[state.times]).completions for _ in state.live] for state in states]


def _scored(
    state: _State, model: RewardModel, paths: Sequence[Sequence[Path]], how: Reduction
) -> list[list[Path]]:
    """Score the paths; equal ones are shown to the model once."""
    different = {path.token_ids: path for some in paths for path in some}
    texts = [path.text for path in different.values()]
    scores = dict(zip(different, model.scores(state.question, texts), strict=True))
    state.scored += sum(map(len, different))
    return [[replace(p, score=reduce(scores[p.token_ids], how)) for p in some] for some in paths]
