"""Models that cannot be loaded, or should not be believed: one line each."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ttrl.models.pretrained import (
    TINY_BASE,
    Room,
    context_room,
    load_bare_outline,
    load_model,
    load_outline,
    load_tokenizer,
)
from ttrl.rollout.ends import refuse_absent_ids, stop_ids
from ttrl.settings import ModelSettings
from ttrl.types import Question, UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of tiny-base."""
    return Path(shutil.copytree(TINY_BASE, tmp_path / "base"))


def settings(folder: Path) -> ModelSettings:
    return ModelSettings(path=str(folder), dtype="float32")


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "zzz"}, "KeyError: 'zzz'"),
        ({"rope_parameters": {"rope_type": "zzz", "rope_theta": 1.0}}, "KeyError: 'zzz'"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"num_key_value_heads": 0}, "ZeroDivisionError"),
        ({"hidden_size": 10**12}, "RuntimeError: Storage size calculation overflowed"),
        ({"vocab_size": 0}, "AssertionError: Padding_idx"),
        ({"vocab_size": -1}, "AssertionError: Padding_idx"),
        ({"num_hidden_layers": 0}, r"must be equal to the number of `layer_types`"),
        ({"hidden_size": "x"}, "field 'hidden_size': TypeError: .* expected int, got str"),
    ],
)
def test_an_outline_that_cannot_be(changes: dict[str, Any], words: str, folder: Path) -> None:
    configure(folder, **changes)
    with pytest.raises(
        UserError, match=f"cannot load model.path = .*{words}.* \\(expected"
    ) as stop:
        load_bare_outline(settings(folder))
    assert "\n" not in str(stop.value)
    assert len(str(stop.value)) < 500 + len(str(folder))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("t5", "Unrecognized configuration class"),
        ("clip", "Unrecognized configuration class"),
        ("mamba", "does not support an attention implementation"),
    ],
)
def test_what_is_no_causal_lm_with_attention(kind: str, words: str, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UserError, match=f"cannot load model.path = .*{words}") as stop:
        load_bare_outline(settings(folder))
    assert "\n" not in str(stop.value)
    assert len(str(stop.value)) < 500 + len(str(folder))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not valid JSON"), ("[" * 100_000, "not valid JSON"), ("[1]", "holds no settings")],
)
def test_broken_files_are_named(name: str, text: str, words: str, folder: Path) -> None:
    """Transformers samples on without the stop tokens of a file that it cannot read."""
    (folder / name).write_text(text)
    for load in (load_outline, lambda settings: load_model(settings, torch.float32)):
        with pytest.raises(UserError, match=f"{name} (is )?{words}"):
            load(settings(folder))


@pytest.mark.parametrize("eos", ["x", [[1]], True, 1.5, {"a": 1}])
def test_stop_tokens_that_are_none(eos: Any, folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    tokenizer = load_tokenizer(settings(folder))
    with pytest.raises(UserError, match=r"eos_token_id is .*, expected a token id or a list"):
        stop_ids(load_outline(settings(folder)), tokenizer)


def test_without_a_generation_config_the_models_own_stop_token_counts(folder: Path) -> None:
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer = load_tokenizer(settings(folder))
    assert stop_ids(load_outline(settings(folder)), tokenizer) == {256}


@pytest.mark.parametrize(
    ("highest", "eos", "words"),
    [
        (199, [3, 199], None),
        (200, 3, r"question 'q': its prompt holds token 200, '.*', but the model's embedding has "),
        (3, 200, "should end at token 200, but the model's embedding has only 200 "),
        (3, [3, 5000], "should end at token 5000, but the model's embedding has only 200 "),
        (3, -1, "should end at token -1, "),
    ],
)
def test_tokens_that_the_model_has_no_embedding_of(
    highest: int, eos: int | list[int], words: str | None, folder: Path
) -> None:
    configure(folder, vocab_size=200, pad_token_id=None)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    tokenizer = load_tokenizer(settings(folder))
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(3)
    asked = [Question("p", "", (1,)), Question("q", "", (1, highest, 2))]
    outline = load_outline(settings(folder))
    if words is None:
        refuse_absent_ids(asked, outline, tokenizer)
        return
    with pytest.raises(UserError, match=words):
        refuse_absent_ids(asked, outline, tokenizer)


def test_weights_that_have_no_place_are_refused(folder: Path) -> None:
    """Fewer layers in config.json than in the weights would be another model."""
    configure(folder, num_hidden_layers=2, layer_types=None)
    with pytest.raises(UserError, match=r"holds 12 weights for .* no place, .*model\.layers\.2\."):
        load_model(settings(folder), torch.float32)


def test_weights_that_transformers_can_do_without_are_not(folder: Path) -> None:
    """Buffers of old checkpoints, and a tied output layer that was saved all the same."""
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(16)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    load_model(settings(folder), torch.float32)


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 16,
    "long_factor": [2.0] * 16,
    "original_max_position_embeddings": 64,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
FULL = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("changes", "tokens", "why"),
    [
        ({}, 8192, ""),
        ({"rope_parameters": LONGROPE}, 64, "original_max_position_embeddings: .*'longrope'"),
        ({"rope_parameters": DYNAMIC}, 8192, "'dynamic' has other factors"),
        (
            {
                "model_type": "gemma3_text",
                "head_dim": 32,
                "layer_types": ["full_attention", "full_attention", "sliding_attention"],
                "rope_parameters": {"full_attention": FULL, "sliding_attention": LONGROPE},
            },
            64,
            "'longrope'",
        ),
        (
            {"layer_types": ["chunked_attention"] * 3, "attention_chunk_size": 100},
            100,
            "attention_chunk_size",
        ),
        ({"attention_chunk_size": 100}, 8192, ""),
        ({"rope_parameters": LONGROPE, "max_position_embeddings": 32}, 32, ""),
    ],
)
def test_up_to_where_a_model_can_be_trained(
    changes: dict[str, Any], tokens: int, why: str, folder: Path
) -> None:
    """As vLLM has it: factors for long sequences come into force beyond, not at, that length."""
    configure(folder, **changes)
    room = context_room(load_bare_outline(settings(folder)))
    assert room is not None and room.tokens == tokens
    assert re.search(why, room.why) if why else room == Room(tokens)


def test_a_runs_folder_is_told_from_its_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run" / "model")
    for load in (load_tokenizer, load_outline):
        with pytest.raises(UserError, match=r"\(did you mean .*/run/model\?\)"):
            load(settings(tmp_path / "run"))


def test_a_config_file_must_say_the_sizes(tmp_path: Path) -> None:
    """Or transformers would take those of the first model of that kind."""
    path = tmp_path / "mine.json"
    path.write_text('{"model_type": "qwen2", "vocab_size": 99, "num_hidden_layers": 2}')
    with pytest.raises(UserError, match="no hidden_size, intermediate_size, num_attention_heads;"):
        load_bare_outline(settings(path))
