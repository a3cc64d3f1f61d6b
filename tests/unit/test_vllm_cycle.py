"""The life of a vLLM engine on a GPU, against a scripted vLLM that keeps the account of a card."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_vllm import LOGPROB, Card, FlatLogprobs, Sizes, install
from tiny_models import STOPS, TOKENIZER, make_settings, saved, tiny_model
from transformers import PreTrainedModel

from ttrl.rollout.engines.vllm_contract import broken_contract
from ttrl.rollout.engines.vllm_engine import VllmEngine
from ttrl.rollout.engines.vllm_likeliest import likeliest
from ttrl.rollout.sampling import SamplingParams
from ttrl.settings import Settings
from ttrl.system.memory import _asleep_bytes, memory_metrics, memory_suffices
from ttrl.system.ranks import Ranks
from ttrl.types import Question, UserError

TOTAL, TRAINER = 1000, 150
SIZES = Sizes(weights=300, itself=20, prefill=60, reload=90)
SHARE = 0.8
CACHE = 800 - 300 - 20 - 60
PARAMS = SamplingParams(2, 1.0, 8)


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model(eos_token_id=STOPS)


@pytest.fixture
def settings(model: PreTrainedModel, tmp_path: Path) -> Settings:
    TOKENIZER.save_pretrained(tmp_path)
    return make_settings(
        model={"path": saved(model, tmp_path).path, "dtype": "float32"},
        rollout={"engine": "vllm", "gpu_memory_share": SHARE},
    )


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """With a trainer on it, and a vLLM that can be started beside it."""
    card = Card(TOTAL)
    card.take("trainer", TRAINER)
    install(monkeypatch, card, SIZES)
    return card


def start(settings: Settings, *, load_weights: bool = False) -> VllmEngine:
    return VllmEngine(settings, TOKENIZER, Ranks(), load_weights=load_weights)


def question(text: str = "a") -> Question:
    return Question(text, text, (1, 2))


@pytest.mark.usefixtures("card")
def test_the_script_keeps_the_contract() -> None:
    assert broken_contract() == []


def test_it_sleeps_when_it_has_started(settings: Settings, card: Card) -> None:
    start(settings)
    assert card.events == ["start", "rollout", "sleep"]
    assert card.held == {"trainer": TRAINER, "vLLM itself": 20}


def test_a_push_happens_while_the_cache_is_asleep(
    settings: Settings, card: Card, model: PreTrainedModel
) -> None:
    engine = start(settings)
    held = []

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for named in model.named_parameters():
            held.append(set(card.held))
            yield named

    for _ in range(2):  # into one that sleeps, and into one that is awake
        card.events.clear()
        engine.load_weights(weights())
        assert card.events[-3:] == ["wake weights", "push", "wake cache"]
    assert card.events[0] == "sleep"
    assert all("kv_cache" not in names and "weights" in names for names in held)
    assert card.held["kv_cache"] == CACHE
    completions = dict(engine.sample([question()], PARAMS))[0]
    assert [c.logprobs for c in completions] == [(LOGPROB, LOGPROB)] * 2


def test_it_may_be_filled_from_the_start(settings: Settings, card: Card) -> None:
    engine = start(settings, load_weights=True)
    assert card.events == ["start", "rollout", "sleep", "wake weights", "push", "wake cache"]
    assert len(list(engine.sample([question(), question("b")], PARAMS))) == 2


def test_asleep_it_samples_nothing(settings: Settings, card: Card, model: PreTrainedModel) -> None:
    engine = start(settings)
    with pytest.raises(RuntimeError, match="holds no weights: push some first"):
        list(engine.sample([question()], PARAMS))
    engine.load_weights(model.named_parameters())
    engine.sleep()
    engine.sleep()  # once more changes nothing
    assert card.held == {"trainer": TRAINER, "vLLM itself": 20}
    with pytest.raises(RuntimeError, match="holds no weights"):
        list(engine.sample([question()], PARAMS))


def test_a_push_that_is_not_complete_leaves_it_empty(
    settings: Settings, model: PreTrainedModel, card: Card
) -> None:
    engine = start(settings)
    with pytest.raises(RuntimeError, match="parameters missing"):
        engine.load_weights(list(model.named_parameters())[:-1])
    with pytest.raises(RuntimeError, match="holds no weights"):
        list(engine.sample([question()], PARAMS))
    engine.load_weights(model.named_parameters())
    assert len(list(engine.sample([question()], PARAMS))) == 1


def test_it_does_not_start_beside_too_large_a_trainer(settings: Settings, card: Card) -> None:
    card.take("trainer", 201)
    with pytest.raises(UserError) as error:
        start(settings)
    assert "less than desired GPU memory utilization (0.8, 800 GiB)" in str(error.value)
    assert "rollout.gpu_memory_share = 0.8 on a GPU" in str(error.value)
    card.take("trainer", 200)
    start(settings)


@pytest.mark.parametrize(
    ("taken", "message"),
    [
        (700, "while vLLM woke up its weights (0.0 of 0.0 GiB free)"),
        (600, "during a push of weights into vLLM"),
        (400, "while vLLM woke up its kv_cache"),
    ],
)
def test_what_lacks_memory_says_what_to_change(
    taken: int, message: str, settings: Settings, card: Card, model: PreTrainedModel
) -> None:
    engine = start(settings)
    card.take("trainer", taken)
    with pytest.raises(UserError) as error:
        engine.load_weights(model.named_parameters())
    text = str(error.value)
    assert f"out of GPU memory {message}" in text
    assert "lower rollout.gpu_memory_share or, under zero3, set" in text
    assert "\n" not in text


def test_other_errors_stay_what_they_are() -> None:
    with (
        pytest.raises(RuntimeError, match=r"^an illegal memory access"),
        memory_suffices("now", "do that"),
    ):
        raise RuntimeError("an illegal memory access")


def test_it_is_closed_as_a_whole(settings: Settings, card: Card) -> None:
    engine = start(settings)
    engine.close()
    assert card.events[-1] == "close"


def test_the_peak_is_without_what_sleeps(
    settings: Settings, card: Card, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch counts what vLLM's allocator has unmapped as allocated all the same."""
    assert _asleep_bytes() == 0
    engine = start(settings)
    assert _asleep_bytes() == SIZES.weights + CACHE
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 900)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda: None)
    asleep = memory_metrics("update")
    assert asleep["memory/update_gpu_peak"] * 2**30 == pytest.approx(900 - 300 - CACHE)
    assert asleep["memory/update_gpu"] * 2**30 == pytest.approx(TRAINER + 20)
    engine.load_weights(model.named_parameters())
    assert memory_metrics("rollout")["memory/rollout_gpu_peak"] * 2**30 == pytest.approx(900)


def test_stop_strings_that_it_was_not_started_for_are_refused(
    settings: Settings, card: Card
) -> None:
    engine = start(settings, load_weights=True)
    with pytest.raises(UserError, match=r"asked to stop at \['a'\] .* in rollout.stop"):
        list(engine.sample([question()], replace(PARAMS, stop=("a",))))
    assert len(list(engine.sample([question()], PARAMS))) == 1


def test_a_support_that_is_not_whole_is_an_error() -> None:
    """As of tokens that are equally likely and more than there is room for."""
    params = replace(PARAMS, top_k=2)
    half, third = math.log(1 / 2), math.log(1 / 3)
    found = FlatLogprobs([half, half, half, 0.0, 0.0, -math.inf])
    found.token_ids, found.start_indices, found.end_indices = [7, 7, 8, 9, 9, 5], [0, 3], [3, 6]
    assert list(likeliest(found, params)) == [
        (array("i", [7, 8]), array("f", [half, half])),
        (array("i", [9]), array("f", [0.0])),
    ]
    found.logprobs[:3] = [third] * 3
    with pytest.raises(
        RuntimeError, match=r"2 likeliest tokens have 0\.6667 of the mass, with top_k"
    ):
        likeliest(found, params)


@pytest.mark.usefixtures("card")
def test_on_a_gpu_it_is_asked_to_sleep_and_may_capture_graphs(settings: Settings) -> None:
    options = start(settings)._llm.options
    assert options["enable_sleep_mode"] and options["gpu_memory_utilization"] == SHARE
    assert options["load_format"] == "dummy"
    assert not options.keys() & {"enforce_eager", "hf_overrides", "tensor_parallel_size"}


@pytest.mark.usefixtures("card")
def test_ranks_that_share_it_bring_their_own_groups(settings: Settings) -> None:
    rollout = settings.rollout.model_copy(update={"tensor_parallel": 2})
    settings = settings.model_copy(update={"rollout": rollout})
    options = VllmEngine(settings, TOKENIZER, Ranks(0, 4), load_weights=False)._llm.options
    assert options["distributed_executor_backend"] == "external_launcher"
    assert options["tensor_parallel_size"] == 2


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(("original", "length"), [(32, 32), (64, 40)])
def test_its_longest_sequence_is_within_what_longrope_leaves_alone(
    original: int, length: int, tmp_path: Path
) -> None:
    """vLLM takes the factors for long sequences, for all, if its longest is beyond that."""
    rope: dict[str, Any] = {"rope_type": "longrope", "rope_theta": 1e4}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    sizes = {"original_max_position_embeddings": original, "head_dim": 8}
    model = saved(tiny_model("phi3", rope_parameters=rope, **sizes), tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    settings = make_settings(
        model={"path": model.path}, rollout={"engine": "vllm", "gpu_memory_share": SHARE}
    )
    assert settings.longest == 40
    assert start(settings)._llm.options["max_model_len"] == length
