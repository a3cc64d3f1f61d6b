"""What is tried on a model before it is trained, and what would be missed without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import VOCABULARY, settings, tiny
from transformers import PreTrainedModel

from ttrl.models import attention, probe
from ttrl.models.packed_model import make_packed, make_still
from ttrl.models.probe import BEYOND, KEPT, Heard, own_logprobs, probes
from ttrl.types import UserError


def prepared(name: str, longest: int, model: PreTrainedModel | None = None) -> PreTrainedModel:
    model = tiny(name) if model is None else model
    make_packed(model, settings(name), longest=longest)
    return model


def test_a_window_that_is_computed_wrongly_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """In sequences that are longer, and so only where the run has some."""
    mask = attention._Part.mask
    monkeypatch.setattr(attention._Part, "mask", lambda part, _, dtype: mask(part, None, dtype))
    prepared("mistral", longest=17)
    with pytest.raises(UserError, match=r"differ from the model's own .* sliding_window = 16"):
        prepared("mistral", longest=18)


def test_a_window_that_only_the_mask_knows_is_refused_where_it_would_cut() -> None:
    prepared("qwen2_moe-window", longest=16)
    with pytest.raises(UserError, match=r"beyond 16 tokens .* have 17 tokens .* at most 16: lower"):
        prepared("qwen2_moe-window", longest=17)


def test_positions_that_depend_on_the_longest_sequence_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where no rule about its configuration knew."""
    monkeypatch.setattr("ttrl.models.packed_model.context_room", lambda model: None)
    prepared("phi3-longrope", longest=64)
    with pytest.raises(UserError, match="packed log-probs differ from the model's own"):
        prepared("phi3-longrope", longest=65)


@pytest.mark.parametrize(
    ("windows", "longest", "lengths"),
    [
        (set(), 10_000, [4, 6, 6, 6]),
        ({4096}, 4096, [4, 6, 6, 6]),
        ({4096}, 4100, [4, 4100, 6, 6, 6]),
        ({128, 1024}, 32_768, [4, 1024 + BEYOND, 6, 6, 6]),
        ({1024, 16_384}, 32_768, [4, 1024 + BEYOND, 6, 6, 6]),
        (set(), 3, [4, 6, 6, 6]),
    ],
)
def test_what_is_tried(windows: set[int], longest: int, lengths: list[int]) -> None:
    tried = probes(Heard(longest, windows=windows), 777)
    assert [len(p.ids) for p in tried] == lengths
    assert [p.start for p in tried[:-1]] == [0] * (len(tried) - 1)
    assert tried[-1].start == max(0, longest - 6)
    assert all(100 <= token < 777 for p in tried[:1] for token in p.ids)
    one, other = (p.sample() for p in tried[-3:-1])
    assert one.prompt_length == other.prompt_length == 3
    assert one.token_ids[:3] == other.token_ids[:3] and one.token_ids != other.token_ids
    assert all(token < 777 for p in tried for token in p.ids)


def test_of_a_long_sequence_few_logits_are_made() -> None:
    model, sizes = tiny("mistral"), []
    model.lm_head.register_forward_hook(lambda *call: sizes.append(call[-1].shape[1]))
    own_logprobs(model, probes(Heard(48, windows={16}), VOCABULARY))
    assert sizes == [4, KEPT + 1, 4, 4, 6]


def test_who_listened_holds_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared("llama", longest=8)
    assert probe._hearing == []


@pytest.mark.parametrize("error", [RuntimeError("a\nb"), KeyError("a b"), AssertionError("a b")])
def test_any_error_becomes_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what was new to transformers when this was written, nobody knows what it raises."""

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("ttrl.models.packed_model.packed_logprobs", fail)
    name = type(error).__name__
    with pytest.raises(UserError, match=f"Llama.* cannot be trained here: {name}: '?a b'?$"):
        prepared("llama", longest=8)


@pytest.mark.parametrize("where", ["packed_model.packed_logprobs", "probe.packed_logprobs"])
def test_want_of_memory_stays_what_it_is(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads the model says what to lower."""

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("too little")

    monkeypatch.setattr(f"ttrl.models.{where}", fail)
    with pytest.raises(torch.OutOfMemoryError):
        prepared("llama", longest=8)


@pytest.mark.parametrize(
    ("dtype", "off", "refused"),
    [
        (torch.float32, [9e-4] * 14, False),
        (torch.float32, [2e-3] + [0.0] * 13, True),
        (torch.bfloat16, [2.5] + [0.0] * 13, False),
        (torch.bfloat16, [0.3] * 14, True),
    ],
)
def test_what_may_be_rounding(
    dtype: torch.dtype, off: list[float], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One log-prob of a real model may be off by more than a nat in bfloat16."""
    monkeypatch.setattr("ttrl.models.packed_model.own_logprobs", lambda *_: torch.zeros(14))
    monkeypatch.setattr("ttrl.models.packed_model.packed_logprobs", lambda *_: torch.tensor(off))
    model = tiny("llama").to(dtype)
    if refused:
        with pytest.raises(UserError, match="packed log-probs differ from the model's own by"):
            prepared("llama", 8, model)
    else:
        prepared("llama", 8, model)


def test_a_model_that_fails_by_itself_is_not_said_to_lack_attention() -> None:
    model = tiny("llama")
    del model.model.layers[2].self_attn.q_proj
    with pytest.raises(UserError, match=r"cannot be trained here: AttributeError: .* 'q_proj'"):
        prepared("llama", 8, model)


def test_only_layers_are_in_training_mode() -> None:
    """They would not recompute; all else in it would act at random."""
    model = tiny("mixtral")
    make_still(model)
    training = {type(module).__name__ for module in model.modules() if module.training}
    assert training == {"MixtralDecoderLayer"}
