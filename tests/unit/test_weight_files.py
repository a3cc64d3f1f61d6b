"""Safetensors files read and written part by part, against transformers, which does it at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensors import assert_equal_to_the_bit, weights
from tiny_models import saved, tiny_model
from transformers import PreTrainedModel

from ttrl.models import weight_files
from ttrl.models.pretrained import load_model, load_outline
from ttrl.models.weight_files import WeightFiles, write_weights
from ttrl.settings import ModelSettings
from ttrl.types import UserError

KINDS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen2-tied": {"tie_word_embeddings": True},
    "llama": {},
    "phi3": {},
    "gemma2": {"head_dim": 8},
    # Experts lie one by one in the files, and stacked in the model.
    "qwen3_moe": {
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 2,
        "head_dim": 8,
    },
}


def kind_of_model(kind: str) -> PreTrainedModel:
    return tiny_model(kind.partition("-")[0], **KINDS[kind])


def read(settings: ModelSettings) -> dict[str, torch.Tensor]:
    return dict(WeightFiles(settings, load_outline(settings)).parameters())


def rewrite(settings: ModelSettings, change: Any) -> None:
    """Let ``change`` work on the weights as they are saved."""
    path = Path(settings.path) / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("files", ["one", "many"])
def test_what_is_read_is_what_transformers_loads(kind: str, files: str, tmp_path: Path) -> None:
    model = kind_of_model(kind)
    settings = saved(model, tmp_path)
    if files == "many":
        (tmp_path / "model.safetensors").unlink()
        model.save_pretrained(tmp_path, max_shard_size=20_000)
        assert not (tmp_path / "model.safetensors").exists()
    found, truth = read(settings), weights(load_model(settings, torch.float32))
    assert list(found) == list(truth)
    assert_equal_to_the_bit(found, truth)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_what_transformers_saves(kind: str, tmp_path: Path) -> None:
    """To the byte in one file; in several, the same model."""
    settings = saved(kind_of_model(kind), tmp_path / "whole")
    outline, given = load_outline(settings), read(settings)
    write_weights(tmp_path, outline, given.items())
    one = (tmp_path / "model.safetensors").read_bytes()
    assert one == (tmp_path / "whole" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_model_is_written_into_several_files(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = saved(kind_of_model(kind), tmp_path / "whole")
    given = read(settings)
    monkeypatch.setattr(weight_files, "FILE_BYTES", 60_000)
    (tmp_path / "parts").mkdir()
    write_weights(tmp_path / "parts", load_outline(settings), given.items())
    (tmp_path / "parts" / "config.json").write_bytes(
        (tmp_path / "whole" / "config.json").read_bytes()
    )
    files = sorted(p.name for p in (tmp_path / "parts").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in given.values())
    parts = ModelSettings(path=str(tmp_path / "parts"), dtype="float32")
    assert_equal_to_the_bit(weights(load_model(parts, torch.float32)), given)


def test_a_writer_takes_no_more_than_a_file_and_a_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a tensor is taken, what was taken before is on disk, up to so much."""
    monkeypatch.setattr(weight_files, "FILE_BYTES", 4000)
    settings = saved(tiny_model(), tmp_path / "whole")
    taken = 0

    def given() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal taken
        for i in range(20):
            written = sum(p.stat().st_size for p in tmp_path.glob("*.tmp"))
            assert taken - written <= 4000 + 1000
            taken += 1000
            yield f"layers.{i}.weight", torch.zeros(250)

    write_weights(tmp_path, load_outline(settings), given())
    assert len(list(tmp_path.glob("model-*-of-00005.safetensors"))) == 5


def lacking(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def misshapen(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = torch.zeros(3)


def with_more(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(3)


@pytest.mark.parametrize("change", [lacking, with_more])
def test_refusals_are_those_of_a_model_that_is_loaded_whole(change: Any, tmp_path: Path) -> None:
    settings = saved(tiny_model(), tmp_path)
    rewrite(settings, change)
    with pytest.raises(UserError, match=r"lacks 1 weights|holds 1 weights for which") as ours:
        read(settings)
    with pytest.raises(UserError) as theirs:
        load_model(settings, torch.float32)
    assert str(ours.value) == str(theirs.value)


def test_another_shape_is_refused(tmp_path: Path) -> None:
    settings = saved(tiny_model(), tmp_path)
    rewrite(settings, misshapen)
    with pytest.raises(UserError, match=r"lacks 1 weights .* example model\.norm\.weight"):
        read(settings)


@pytest.mark.parametrize("where", ["embedding", "head", "both"])
def test_tied_weights_may_lie_under_either_name(where: str, tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=True)
    settings = saved(model, tmp_path)

    def move(tensors: dict[str, torch.Tensor]) -> None:
        embedding = tensors["model.embed_tokens.weight"]
        if where == "head":
            del tensors["model.embed_tokens.weight"]
        if where != "embedding":
            tensors["lm_head.weight"] = embedding.clone()

    rewrite(settings, move)
    found = read(settings)
    assert_equal_to_the_bit(found, weights(model))


def test_tied_weights_that_differ_are_refused(tmp_path: Path) -> None:
    """Transformers would go on without tying them."""
    settings = saved(tiny_model(tie_word_embeddings=True), tmp_path)

    def differ(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    rewrite(settings, differ)
    with pytest.raises(UserError, match=r"ties lm_head.weight to .* holds both, and they differ"):
        read(settings)


def test_the_files_of_a_base_model_have_a_shorter_name_for_everything(tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=True)
    settings = saved(model, tmp_path)

    def shorten(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    rewrite(settings, shorten)
    assert_equal_to_the_bit(read(settings), weights(model))


def test_files_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    settings = saved(tiny_model(), tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(UserError, match=r"cannot load model\.path .* Safetensor"):
        read(settings)
    path.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"has neither model.safetensors nor model.safetensors.ind"):
        read(settings)


@pytest.fixture
def shards(tmp_path: Path) -> ModelSettings:
    """A model in several files."""
    tiny_model().save_pretrained(tmp_path, max_shard_size=20_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    return ModelSettings(path=str(tmp_path), dtype="float32")


def load_whole(settings: ModelSettings) -> None:
    load_model(settings, torch.float32)


@pytest.mark.parametrize("load", [read, load_whole])
@pytest.mark.parametrize(
    ("index", "words"),
    [
        ('{"metadata": {}}', "index.json has no weight_map, expected an object"),
        ('{"weight_map": []}', "index.json has no weight_map, expected an object"),
        ('{"weight_map": {"a": 1}}', "index.json has no weight_map, expected an object"),
        ("{", "index.json is not valid JSON"),
    ],
)
def test_a_broken_index_is_named(index: str, words: str, load: Any, shards: ModelSettings) -> None:
    (Path(shards.path) / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=words) as stop:
        load(shards)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize("load", [read, load_whole])
def test_a_weight_in_two_files_is_refused(load: Any, shards: ModelSettings) -> None:
    """The index names one of them, and transformers takes the last."""
    first, *_, last = sorted(Path(shards.path).glob("*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(last), name: tensor + 1}, last, {"format": "pt"})
    words = f"{name} is in {first.name} and in {last.name}, expected in one file"
    with pytest.raises(UserError, match=words):
        load(shards)


def test_quantized_models_are_refused(tmp_path: Path) -> None:
    settings = saved(tiny_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"is quantized; expected one that is not"):
        read(settings)
