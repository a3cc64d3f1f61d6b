"""A saved model for whoever only reads it; importing takes seconds, so only where it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ttrl.settings import ModelSettings


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    """What loads a tiny model whose completions stop early, and its tokenizer."""
    from tiny_models import STOPS, TOKENIZER, saved, tiny_model

    folder = tmp_path_factory.mktemp("saved_model")
    TOKENIZER.save_pretrained(folder)
    return saved(tiny_model(eos_token_id=STOPS), folder)


@pytest.fixture
def model(saved_model: ModelSettings) -> PreTrainedModel:
    """The same, loaded anew for every test."""
    from ttrl.models.packed_model import load_policy_model

    return load_policy_model(saved_model)
