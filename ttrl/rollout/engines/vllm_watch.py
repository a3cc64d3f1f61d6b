"""Sampling with vLLM in which answers are broken off when their confidence falls too low.

vLLM has no such stop of its own. But we drive its steps, and it says the likeliest tokens of each
place with every one: so each answer is a request, looked at after each step, and aborted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttrl.rollout.engines.watch import Watch
from ttrl.rollout.sampling import SamplingParams
from ttrl.types import Completion, FinishReason, Question


def sample_watched(
    add: Callable[[Question, SamplingParams], str],
    step: Callable[[], Sequence[Any]],
    abort: Callable[[list[str]], None],
    completions: Callable[[Sequence[Any], SamplingParams], tuple[Completion, ...]],
    questions: Sequence[Question],
    params: SamplingParams,
) -> Iterator[tuple[int, tuple[Completion, ...]]]:
    """Yield (index of the question, its n completions) as `Engine.sample` does.

    Args:
        add: asks for a sample; returns the request's name.
        step: decodes a token of each request; returns those that have one.
        abort: ends requests by name.
        completions: makes completions of what vLLM says.
        questions: what to ask.
        params: with a floor; ``n`` requests are made for each question.
    """
    floor = params.floor
    assert floor is not None
    rows = [(q, i) for q in range(len(questions)) for i in range(params.n)]
    watch = Watch(floor, [questions[q].id for q, _ in rows], params.max_new_tokens)
    ended: dict[int, dict[int, Completion]] = {}
    waiting: dict[str, int] = {}
    try:
        for row, (q, i) in enumerate(rows):
            waiting[add(questions[q], replace(params, n=1, first=params.first + i))] = row
        while waiting:
            outputs = [output for output in step() if output.request_id in waiting]
            if not outputs:
                continue
            row_L = np.array([waiting[output.request_id] for output in outputs], dtype=np.int64)
            low_L = watch.below(row_L, _likeliest(outputs, watch.length_R[row_L] + 1))
            for output, low in zip(outputs, low_L.tolist(), strict=True):
                if not (output.finished or low):
                    continue
                said = output.outputs
                if not output.finished:
                    abort([output.request_id])
                    said = [replace(said[0], finish_reason=FinishReason.UNSURE)]
                q, i = rows[waiting.pop(output.request_id)]
                of = ended.setdefault(q, {})
                (of[i],) = completions(said, params)
                if len(of) == params.n:
                    yield q, tuple(of[i] for i in range(params.n))
    finally:
        abort(list(waiting))


def _likeliest(outputs: Sequence[Any], length_L: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log-probs of the likeliest tokens [L, K] in the last place of each output.

    Raises:
        RuntimeError: unless vLLM has decoded one token of each since the last step.
    """
    found = []
    for output, length in zip(outputs, length_L.tolist(), strict=True):
        (one,) = output.outputs
        flat = one.logprobs
        if len(flat.start_indices) != length:
            raise RuntimeError(
                f"vLLM gave log-probs of {len(flat.start_indices)} tokens after {length} steps"
            )
        first, end = flat.start_indices[-1] + 1, flat.end_indices[-1]  # the sampled one is first
        found.append(flat.logprobs[first:end])
    logprobs_LK = np.array(found, dtype=np.float32).astype(np.float64)
    return logprobs_LK.reshape(len(outputs), -1)
