"""Recipe files: what they include, and the models that they are for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from recipes import MINIMAL

from ttrl.settings.recipe import load_settings
from ttrl.types import UserError


def test_a_file_of_the_users_own_is_named_after_itself(recipe: Callable[..., str]) -> None:
    settings = load_settings(recipe(MINIMAL))
    assert (settings.name, settings.model.path, settings.data.train) == ("mine", "m", "q.json")


def test_later_layers_win_table_by_table(recipe: Callable[..., str]) -> None:
    recipe("seed = 1\nepochs = 9\n[rollout]\nvotes = 40\ntemperature = 0.5\n", "first.toml")
    recipe("epochs = 8\n[rollout]\nvotes = 50\n", "second.toml")
    path = recipe(f'include = ["first", "second"]\n{MINIMAL}[loss]\nclip_low = 0.1\n')
    settings = load_settings(path, overrides=["loss.clip_high=0.3"])
    assert (settings.seed, settings.epochs) == (1, 8)
    assert (settings.rollout.votes, settings.rollout.temperature) == (50, 0.5)
    assert (settings.loss.clip_low, settings.loss.clip_high) == (0.1, 0.3)


def test_a_file_may_include_a_shipped_recipe(recipe: Callable[..., str]) -> None:
    path = recipe('include = ["benchmarks/amc"]\nmodel = {path = "m"}\nseed = 5\n')
    settings = load_settings(path)
    assert (settings.seed, settings.epochs, settings.loss.dual_clip) == (5, 30, 3.0)


@pytest.mark.parametrize(
    ("files", "chain"),
    [
        ({"mine.toml": 'include = ["mine"]'}, "mine.toml -> .*mine.toml"),
        (
            {"mine.toml": 'include = ["b"]', "b.toml": 'include = ["mine"]'},
            "mine.toml -> .*b.toml -> .*mine.toml",
        ),
    ],
)
def test_an_include_cycle_is_refused(
    recipe: Callable[..., str], files: dict[str, str], chain: str
) -> None:
    paths = [recipe(text, name) for name, text in files.items()]
    with pytest.raises(UserError, match=f"a recipe includes itself: .*{chain}"):
        load_settings(paths[0])


def test_a_recipe_may_be_included_twice(recipe: Callable[..., str]) -> None:
    recipe("seed = 3", "base.toml")
    recipe('include = ["base"]', "a.toml")
    assert load_settings(recipe(f'include = ["a", "base"]\n{MINIMAL}')).seed == 3


def test_files_are_found_beside_the_recipe_that_names_them(
    recipe: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sub/q.jsonl", "sub/own.py", "top.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    base = (
        '[data]\ntrain = "q.jsonl"\nheld_out = "top.jsonl"\n[answers]\nextract = "own.py:find"\n'
        '[reward]\nestimator = "majority"\n'
    )
    recipe(base, "sub/base.toml")
    path = recipe('include = ["sub/base"]\nmodel = {path = "m"}\n', "mine.toml")
    monkeypatch.chdir(tmp_path.parent)
    settings = load_settings(path)
    assert settings.data.train == str(tmp_path / "sub/q.jsonl")
    assert settings.answers.extract == f"{tmp_path / 'sub/own.py'}:find"
    assert settings.reward.estimator == "majority"
    assert settings.data.held_out == "top.jsonl"  # beside another recipe: from where we are
    assert load_settings(path, overrides=["data.train=q.jsonl"]).data.train == "q.jsonl"
    monkeypatch.chdir(tmp_path / "sub")
    assert load_settings("base.toml", model="m").data.train == "q.jsonl"


def test_other_fields_for_the_held_out_set() -> None:
    settings = load_settings(
        "tiny-arithmetic", overrides=["data.for_held_out.prompt_field=question"]
    )
    assert settings.data.as_held_out().prompt_field == "question"
    with pytest.raises(UserError, match=r"data\.for_held_out.*suffix.*'prompt_field'"):
        load_settings("tiny-arithmetic", overrides=["data.for_held_out.suffix=x"])
    with pytest.raises(UserError, match=r"data\.for_held_out needs data\.held_out"):
        load_settings(
            "tiny-arithmetic",
            overrides=["data.for_held_out.prompt_field=q", "data.held_out=none"],
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = \nepochs = 1", "mine.toml is not valid TOML: .*line 1"),
        ('include = "paper"', "include = 'paper': expected a list"),
        ('include = ["papr"]', r"include = \['papr'\]: no such recipe"),
        (
            'model = 3\ndata = {train = "q"}',
            r"unknown setting 'model' \(did you mean 'model\.path'",
        ),
        ('model = {path = "m"}', "data is missing"),
        ('model = {path = "m"}\ndata = {split = "x"}', r"data\.train is missing"),
        ('data = {train = "q"}', r"names no model: add --model with one of .*qwen3-8b"),
        ('model = {dtype = "float32"}\ndata = {train = "q"}', "names no model: add --model"),
    ],
)
def test_a_file_that_is_no_recipe(recipe: Callable[..., str], text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_settings(recipe(text))


def test_a_recipe_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b'name = "caf\xe9"')
    with pytest.raises(UserError, match=r"mine\.toml is not valid TOML"):
        load_settings(str(path))


def test_unknown_recipes() -> None:
    with pytest.raises(UserError, match=r"unknown recipe 'aime' \(did you mean 'aime24'\?\)"):
        load_settings("aime", model="qwen3-8b")
    with pytest.raises(UserError, match=r"no recipe file at nowhere/mine\.toml"):
        load_settings("nowhere/mine.toml")
    for part in ("paper", "qwen3-8b", "../config"):
        with pytest.raises(UserError, match="unknown recipe"):
            load_settings(part)


def test_a_benchmark_needs_a_model() -> None:
    with pytest.raises(UserError, match=r"'aime24' names no model: add --model with one of"):
        load_settings("aime24")


def test_a_model_by_part_name_path_or_folder() -> None:
    by_name = load_settings("aime24", model="qwen2.5-math-7b")
    assert load_settings("aime24", model="Qwen/Qwen2.5-Math-7B") == by_name
    folder = load_settings("aime24", model="./models/My-Model/")
    assert (folder.name, folder.model.path) == ("aime24-my-model", "./models/My-Model/")
    assert folder.rollout.temperature == 0.6
