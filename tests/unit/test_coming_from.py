"""docs/coming_from.md names settings that exist, with values that they take."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ttrl.settings.recipe import load_settings

PAGE = Path(__file__).parents[2] / "docs" / "coming_from.md"
FIRST = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
SETTINGS = [setting for column in FIRST for setting in re.findall(r"`([^`]+)`", column)]


def test_the_page_has_its_tables() -> None:
    assert len(SETTINGS) > 50


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_of_ours_exists(setting: str) -> None:
    key, _, value = setting.partition(" = ")
    settings = load_settings("tiny-arithmetic")
    found = settings
    for name in key.split("."):
        found = getattr(found, name)
    if value:
        changed = load_settings("tiny-arithmetic", overrides=[f"{key}={value}"])
        section, _, name = key.rpartition(".")
        assert f'"{getattr(getattr(changed, section, changed), name)}"' == value
