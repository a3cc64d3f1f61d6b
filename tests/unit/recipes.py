"""A recipe's least text, and settings that tests of settings count on."""

from __future__ import annotations

import pytest

from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError

MINIMAL = 'model = {path = "m"}\ndata = {train = "q.json"}\n'
# What these tests count on, whatever the shipped recipe says.
FIXED = (
    "data.max_prompt_tokens=128",
    "rollout.questions_per_step=16",
    "rollout.votes=64",
    "rollout.temperature=1.0",
    "rollout.max_new_tokens=80",
    "policy.trained_samples=32",
    "policy.sequences_per_update=512",
    "memory.tokens_per_batch=8192",
)


def load(*overrides: str) -> Settings:
    return load_settings("tiny-arithmetic", overrides=(*FIXED, *overrides))


def refusal(*overrides: str) -> str:
    """The message that these overrides are refused with: one line."""
    with pytest.raises(UserError) as error:
        load(*overrides)
    message = str(error.value)
    assert "\n" not in message
    return message
