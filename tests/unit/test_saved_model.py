"""The trained model on disk: whole, or not there."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from tiny_models import TOKENIZER, saved, tiny_model
from transformers import GenerationConfig, PreTrainedModel

from ttrl.models.pretrained import load_model
from ttrl.run.saved_model import save_model


def weights_of(model: PreTrainedModel) -> list:
    return list(model.named_parameters())


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"temperature": 0.7, "top_p": 0.9, "do_sample": False}, {"temperature": 0.7}),
        ({"temperature": 0.7, "do_sample": True}, {"temperature": 0.7}),
        ({"temperature": 0.7, "length_penalty": 2.0}, {"temperature": None}),
    ],
    ids=["sampling", "valid", "beams"],
)
def test_any_model_that_can_be_loaded_can_be_saved(
    values: dict[str, Any], kept: dict[str, Any], tmp_path: Path
) -> None:
    """transformers refuses what it loads: values that are without effect."""
    settings = saved(tiny_model(), tmp_path / "base")
    text = json.dumps({"eos_token_id": [5, 7], **values})
    (tmp_path / "base" / "generation_config.json").write_text(text)
    model = load_model(settings, torch.float32)
    save_model(tmp_path / "out", model, TOKENIZER, weights_of(model))
    config = GenerationConfig.from_pretrained(tmp_path / "out")
    assert config.eos_token_id == [5, 7]
    assert {name: getattr(config, name) for name in kept} == kept
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_saving_a_model_uses_a_folder_of_its_own(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "file.tmp").write_text("kept")
    (tmp_path / "link.tmp").symlink_to(elsewhere)
    model = tiny_model()
    for name in ("file", "link"):
        save_model(tmp_path / name, model, TOKENIZER, weights_of(model))
        assert (tmp_path / name / "config.json").is_file()
        assert (tmp_path / name).stat().st_mode == elsewhere.stat().st_mode
    assert list(elsewhere.iterdir()) == []
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["elsewhere", "file", "file.tmp", "link", "link.tmp"]


def test_a_model_that_cannot_be_saved_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path) -> NoReturn:
        raise KeyboardInterrupt

    model, tokenizer = tiny_model(), copy.deepcopy(TOKENIZER)
    monkeypatch.setattr(tokenizer, "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path / "out", model, tokenizer, weights_of(model))
    assert list(tmp_path.iterdir()) == []
