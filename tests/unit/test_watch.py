"""The confidence of answers while they are sampled, against groups of whole ones."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ttrl.report.confidence import Confidence, token_confidences
from ttrl.rollout.engines.vllm_watch import sample_watched
from ttrl.rollout.engines.watch import Watch
from ttrl.rollout.sampling import ConfidenceFloor, SamplingParams
from ttrl.selection.confidence import groups
from ttrl.types import Completion, FinishReason, Question
from ttrl.types.top_logprobs import TopLogprobs


def logprobs(rng: np.random.Generator, tokens: int) -> np.ndarray:
    """Of three tokens at each place, in float32 as engines note them."""
    found = np.log(rng.dirichlet([1.0] * 3, tokens))
    return np.sort(found.astype(np.float32).astype(np.float64))[:, ::-1]


def test_what_is_recorded_of_a_token_is_what_is_watched() -> None:
    values = logprobs(np.random.default_rng(0), 50)
    recorded = Confidence.of(TopLogprobs.of(((7, 8, 9), row.tolist()) for row in values))
    assert recorded is not None
    assert list(recorded.tokens) == token_confidences(values).tolist()
    half = np.log([[0.5, 0.25]])
    assert token_confidences(half) == pytest.approx([1.5 * np.log(2)], abs=5e-5)


@pytest.mark.parametrize("window", [1, 3, 7, 20])
def test_an_answer_falls_below_where_its_groups_do(window: int) -> None:
    """Three answers of different lengths, told of in turns, and one longer than any group."""
    rng = np.random.default_rng(window)
    traces = [logprobs(rng, length) for length in (19, 5, 12)]
    least = {"a": 1.3, "b": 1.2, "c": 9.0}
    watch = Watch(ConfidenceFloor(window, least), ["a", "b", "c"], 19)
    first: dict[int, int] = {}
    for step in range(19):
        rows = np.array([i for i in rng.permutation(3) if step < len(traces[i])])
        low = watch.below(rows, np.array([traces[i][step] for i in rows]))
        for i in rows[low].tolist():
            first.setdefault(i, step + 1)
    for i, trace in enumerate(traces):
        means = groups(token_confidences(trace), window)
        whole = means if window <= len(trace) else []
        ends = [window + j for j, mean in enumerate(whole) if mean < least["abc"[i]]]
        assert first.get(i) == (ends[0] if ends else None)


@dataclass
class Said:
    """An answer as vLLM gives it."""

    token_ids: list[int]
    logprobs: Any
    finish_reason: str | None


def test_a_floor_needs_the_likeliest_tokens() -> None:
    with pytest.raises(ValueError, match="floor needs top_logprobs"):
        SamplingParams(2, 1.0, 8, floor=ConfidenceFloor(2, {}))


class Scripted:
    """vLLM as far as it is asked here: a token of each request in each step, from a script."""

    def __init__(self, traces: dict[str, np.ndarray]) -> None:
        self.traces = traces
        self.running: dict[str, int] = {}
        self.aborted: list[str] = []

    def add(self, question: Question, params: SamplingParams) -> str:
        assert params.n == 1
        name = f"{question.id}{params.first}"
        self.running[name] = 0
        return name

    def step(self) -> list[Any]:
        outputs = []
        for name in list(self.running):
            self.running[name] += 1
            length = self.running[name]
            rows = self.traces[name][:length]
            flat = SimpleNamespace(
                start_indices=[4 * i for i in range(length)],
                end_indices=[4 * i + 4 for i in range(length)],
                logprobs=[x for row in rows for x in (row[0], *row)],  # the sampled one first
            )
            finished = length == len(self.traces[name])
            one = Said(list(range(length)), flat, "stop" if finished else None)
            outputs.append(SimpleNamespace(request_id=name, finished=finished, outputs=[one]))
            if finished:
                del self.running[name]
        return outputs

    def abort(self, names: list[str]) -> None:
        for name in names:
            del self.running[name]
            self.aborted.append(name)


@pytest.fixture
def scripted() -> Scripted:
    high, low = np.log([[0.9, 0.05, 0.05]]), np.log([[0.34, 0.33, 0.33]])
    return Scripted(
        {
            "a2": np.repeat(high, 4, axis=0),
            "a3": np.concatenate([high, low, low, high]),
            "b2": np.concatenate([high, high, low]),
            "b3": np.concatenate([high, low, low]),
        }
    )


def test_requests_of_vllm_are_aborted_where_a_group_is_low(scripted: Scripted) -> None:
    """Groups of two. a3 has one below 1.3 with its third token, b3 as well, but ends with it."""
    floor = ConfidenceFloor(2, {"a": 1.3, "b": 1.3})
    questions = [Question("a", "", (1,)), Question("b", "", (1,))]

    def completions(said: Any, params: SamplingParams) -> tuple[Completion, ...]:
        return tuple(
            Completion(tuple(o.token_ids), (), "", FinishReason(o.finish_reason)) for o in said
        )

    params = SamplingParams(2, 1.0, 8, top_logprobs=3, first=2, floor=floor)
    vllm = (scripted.add, scripted.step, scripted.abort)
    found = dict(sample_watched(*vllm, completions, questions, params))
    ends = {q: [(len(c.token_ids), c.finish_reason.value) for c in of] for q, of in found.items()}
    assert ends == {0: [(4, "stop"), (3, "unsure")], 1: [(3, "stop"), (3, "stop")]}
    assert scripted.aborted == ["a3"]
    assert not scripted.running
