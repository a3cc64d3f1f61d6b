"""Searches step by step, against a slow one of a question alone; budgets and streams by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.sampling import SamplingParams
from ttrl.search import SearchParams, search
from ttrl.search.paths import Path
from ttrl.search.steps import keep_beam
from ttrl.types import Completion, FinishReason, Question

STEP = "\n"
SAMPLING = SamplingParams(n=1, temperature=1.0, max_new_tokens=40, stop=("!",), stream=(7, "t"))
QUESTIONS = [Question(f"q{i}", f"ask {i}: ", (1, 2, i)) for i in range(5)]


def number(*what: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:4])


def written(stream: Sequence[object], id: str, prompt: str, i: int) -> str:
    """What the pretended policy says next: mostly a step of few kinds, at times the end."""
    drawn = number(tuple(stream), id, i) % 10
    steps = prompt.count(STEP)
    if steps and drawn < 2 * steps - 2:
        return f"end{drawn % 3}"
    return f"{'abc'[drawn % 3]}{STEP}"


class Engine:
    """Writes `written`, one token a character; notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[Question], SamplingParams]] = []

    def sample(
        self, questions: Sequence[Question], params: SamplingParams
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        self.asked.append((list(questions), params))
        for q in reversed(range(len(questions))):
            texts = [
                written(params.stream, questions[q].id, questions[q].prompt, i)
                for i in range(params.n)
            ]
            yield q, tuple(completion(text) for text in texts)


def completion(text: str, reason: FinishReason = FinishReason.STOP) -> Completion:
    return Completion(tuple(map(ord, text)), (-1.0,) * len(text), text, reason)


class Judge:
    """Scores a text by a hash of it; notes how much it was shown."""

    step = STEP

    def __init__(self) -> None:
        self.shown: dict[str, int] = {}

    def scores(self, question: Question, solutions: Sequence[str]) -> list[tuple[float, ...]]:
        assert len(set(solutions)) == len(solutions), "equal paths are shown once"
        self.shown[question.id] = self.shown.get(question.id, 0) + sum(map(len, solutions))
        return [(0.0, score(question.id, text)) for text in solutions]


def score(id: str, text: str) -> float:
    return number(id, text) % 1000 / 1000


def slow(kind: str, id: str, prompt: str, n: int, width: int, steps: int) -> tuple[list[Any], int]:
    """(what ended, as (text, score); characters written) of one question, step by step."""
    stream = (*SAMPLING.stream, "search", kind)
    live, ended, tokens, times = [""], [], 0, n
    for step in range(steps):
        every: list[list[str]] = []
        for place, text in enumerate(live):
            news = [written(stream, f"{id}/{step}/{place}", prompt + text, i) for i in range(times)]
            tokens += sum(map(len, news))
            every.append([text + new for new in news])
        if kind == "dvts":
            if step == 0:
                every = [every[0][i : i + width] for i in range(0, n, width)]
            best = [max(texts, key=lambda t: score(id, t)) for texts in every]
            ended += [t for t in best if not t.endswith(STEP)]
            live, times = [t for t in best if t.endswith(STEP)], width
        else:
            flat = [t for texts in every for t in texts]
            ended += [t for t in flat if not t.endswith(STEP)]
            going = sorted(
                dict.fromkeys(t for t in flat if t.endswith(STEP)), key=lambda t: -score(id, t)
            )
            room = max(0, n - len(ended))
            live = going[: room // width + (room % width > 0)]
            times = width
            while live and times * len(live) < room:
                times += 1
        if not live:
            break
    return [(t, score(id, t)) for t in ended + live], tokens


@pytest.mark.parametrize("kind", ["beam", "dvts"])
@pytest.mark.parametrize(("n", "width"), [(16, 4), (8, 2), (6, 3), (4, 4), (3, 1)])
def test_a_search_is_the_slow_one(kind: str, n: int, width: int) -> None:
    judge = Judge()
    params = SearchParams(n=n, width=width, sampling=SAMPLING, steps=6)
    found = search(kind, RolloutPool(Engine()), judge, QUESTIONS, params)  # type: ignore[arg-type]
    assert [f.question for f in found] == QUESTIONS
    for one in found:
        expected, tokens = slow(kind, one.question.id, one.question.prompt, n, width, 6)
        assert [(s.text, s.score) for s in one.solutions] == expected
        assert one.tokens == tokens
        assert one.scored_tokens == judge.shown[one.question.id]
        assert [s.tokens for s in one.solutions] == [len(s.text) for s in one.solutions]
        if kind == "dvts":
            assert len(one.solutions) == n // width
    assert len({s.text for f in found for s in f.solutions}) > 1


def test_a_question_alone_finds_the_same() -> None:
    params = SearchParams(n=8, width=4, sampling=SAMPLING)
    together = search("beam", RolloutPool(Engine()), Judge(), QUESTIONS, params)  # type: ignore[arg-type]
    alone = search("beam", RolloutPool(Engine()), Judge(), QUESTIONS[3:4], params)  # type: ignore[arg-type]
    assert alone == together[3:4]


def test_what_the_engine_is_asked() -> None:
    engine, pool = Engine(), None
    pool = RolloutPool(engine)  # type: ignore[arg-type]
    params = SearchParams(n=8, width=4, sampling=SAMPLING, step_tokens=5)
    search("dvts", pool, Judge(), QUESTIONS[:1], params)
    (first,), asked = engine.asked[0]
    assert (asked.n, asked.max_new_tokens, asked.stop) == (8, 5, ("\n", "!"))
    assert asked.stream == (7, "t", "search", "dvts")
    assert (first.id, first.prompt_ids) == ("q0/0/0", (1, 2, 0))
    second, asked = engine.asked[1]
    assert asked.n == 4
    assert second[0].prompt == "ask 0: " + bytes(second[0].prompt_ids[3:]).decode()
    assert pool.state()["lengths"] == {}, "paths are no questions that come again"


def test_what_has_no_room_or_no_steps_left_is_cut_off() -> None:
    short = SamplingParams(n=1, temperature=1.0, max_new_tokens=2, stream=(7, "t"))
    params = SearchParams(n=4, width=4, sampling=short)
    (found,) = search("dvts", RolloutPool(Engine()), Judge(), QUESTIONS[:1], params)  # type: ignore[arg-type]
    assert [(s.tokens, s.truncated) for s in found.solutions] == [(2, True)]
    params = SearchParams(n=4, width=4, sampling=SAMPLING, steps=1)
    (found,) = search("beam", RolloutPool(Engine()), Judge(), QUESTIONS[:1], params)  # type: ignore[arg-type]
    assert [(s.text.count(STEP), s.truncated) for s in found.solutions] == [(1, True)]


def test_a_beam_keeps_different_paths_by_hand() -> None:
    """Of n = 4 with width 2, one has ended: three are wanted, so two paths go on."""
    a, b, c = (Path((i,), f"{i}\n", score=s) for i, s in ((1, 0.9), (2, 0.5), (3, 0.7)))
    end = Path((4,), "4", score=0.1, ended=True)
    params = SearchParams(n=4, width=2, sampling=SAMPLING)
    assert keep_beam([[a, a], [b, end, c]], 0, params) == ([a, c], 2, [end])
    assert keep_beam([[a, a], [b, c]], 2, params) == ([a], 2, [])
    assert keep_beam([[a], [b]], 4, params) == ([], 2, [])
    assert keep_beam([[a, a], [a, a]], 0, params) == ([a], 4, []), "the only one has all four"


def test_how_a_completion_ends_a_path() -> None:
    path = Path((9,), "x\n")
    on = path.then(completion("y\n"), STEP)
    assert (on.text, on.token_ids, on.ended) == ("x\ny\n", (9, 121, 10), False)
    assert path.then(completion("y!"), STEP).ended, "another stop string, or the end token"
    cut = path.then(completion("y", FinishReason.LENGTH), STEP)
    assert cut.ended and cut.truncated


def test_a_width_that_does_not_divide_is_refused() -> None:
    params = SearchParams(n=6, width=4, sampling=SAMPLING)
    with pytest.raises(ValueError, match="expected a multiple of width = 4"):
        search("beam", RolloutPool(Engine()), Judge(), QUESTIONS, params)  # type: ignore[arg-type]
