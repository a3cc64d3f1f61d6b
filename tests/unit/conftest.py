"""A saved model for whoever only reads it; importing takes seconds, so only where it is used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ttrl.answers import Grader
    from ttrl.data.questions import QuestionSet
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


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    """A grader with so much time that what it decides does not depend on the machine."""
    from ttrl.answers import Grader
    from ttrl.settings import AnswerSettings

    with Grader(AnswerSettings(deadline_s=60.0)) as one:
        yield one


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., str]:
    """Writes a recipe file and returns its path."""

    def write(text: str, name: str = "mine.toml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., QuestionSet]:
    """Writes rows to a .json file and loads them; every rejection is allowed unless stated."""
    from tiny_tokenizer import tiny_tokenizer

    from ttrl.data.questions import load_questions
    from ttrl.settings import DataSettings

    tokenizer = tiny_tokenizer()

    def load(*rows: object, **settings: object) -> QuestionSet:
        path = tmp_path / "q.json"
        path.write_text(json.dumps(rows))
        settings = {"max_rejected_share": 1.0, **settings}
        data = DataSettings.model_validate({"train": str(path), **settings})
        return load_questions(data.train, data, tokenizer)

    return load
