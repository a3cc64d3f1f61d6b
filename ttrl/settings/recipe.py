"""From recipes and the command line to settings: TOML in, checked before anything is loaded.

A recipe is a TOML file whose tables are the sections of `ttrl.settings`. ``include = ["paper"]``
lays other recipes under it; a model's own settings (``recipes/models/``) go on top of a
benchmark's; the command line's ``--set section.key=value`` goes last.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic

from ttrl.settings import PolicySettings, RolloutSettings, Section, Settings
from ttrl.settings.errors import did_you_mean, readable_errors
from ttrl.settings.foreign import theirs
from ttrl.types import UserError

RECIPES = Path(__file__).parents[1] / "recipes"
# Their keys are not known beforehand, or are checked by their type.
_OPEN_TABLES = ("data.chat_template_kwargs", "data.for_held_out", "reward.options", "reward.extra")
_FILES = (
    ("data", "train"),
    ("data", "held_out"),
    ("answers", "extract"),
    ("reward", "estimator"),
    ("rollout", "workflow"),
)


def load_settings(
    recipe: str | None,
    *,
    model: str | None = None,
    data: str | None = None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
) -> Settings:
    """Compose and check a run's settings.

    Args:
        recipe: a shipped recipe's name (`recipe_names`), or the path of a .toml file; None
            starts from the defaults, with ``model`` and ``data``.
        model: a shipped model part's name (`model_names`), the model path that one of them
            holds, or any other folder or hub name.
        data: takes the place of the recipe's ``data.train``.
        overrides: "section.key=value" with a TOML value, a bare word is a string, "none" unsets;
            or a mapping from "section.key" to the value itself.

    Raises:
        UserError: for an unknown recipe, key or value, or a broken rule.
    """
    tables = _read_recipe(_recipe_path(recipe)) if recipe is not None else {}
    name = Path(recipe).stem if recipe is not None else "settings"
    if model is not None:
        part_name, part = _model_part(model)
        revision = {"model": {"revision": None}}  # the recipe's is one of its own model
        tables = _merge(_merge(tables, revision), part)
        name = f"{name}-{part_name}"
    if data is not None:
        tables = _given_questions(_merge(tables, {"data": {"train": data}}))
    tables.setdefault("name", name)
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            tables = _merge(tables, _nested(key, value))
    else:
        for override in overrides:
            tables = _apply_override(tables, override)
    model_table = tables.get("model", {})
    if isinstance(model_table, dict) and not model_table.get("path"):
        raise UserError(
            f"recipe {recipe!r} names no model: add --model with one of {', '.join(model_names())},"
            " a folder, or a hub name"
        )
    return _checked(tables)


def recipe_names() -> list[str]:
    """List the shipped recipes.

    They are complete ones, by machine where they are made for one, and benchmarks, which need a
    model.
    """
    return sorted(_recipes())


def _recipes() -> dict[str, Path]:
    """Find the file of each recipe's name; "MACHINE/NAME" for those in the folder of a machine."""
    found = {}
    for path in RECIPES.rglob("*.toml"):
        folder = path.parent.relative_to(RECIPES).as_posix()
        if folder != "models" and path != RECIPES / "paper.toml":
            found[path.stem if folder in (".", "benchmarks") else f"{folder}/{path.stem}"] = path
    return found


def model_names() -> list[str]:
    """List the shipped model parts."""
    return sorted(p.stem for p in (RECIPES / "models").glob("*.toml"))


def _recipe_path(recipe: str) -> Path:
    if recipe.endswith(".toml"):
        if not Path(recipe).is_file():
            raise UserError(f"no recipe file at {recipe}")
        return Path(recipe)
    shipped = _recipes()
    if recipe in shipped:
        return shipped[recipe]
    raise UserError(
        f"unknown recipe {recipe!r}{did_you_mean(recipe, recipe_names())}: expected one of "
        f"{', '.join(recipe_names())}, or the path of a .toml file"
    )


def _read_recipe(path: Path, included_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read the recipe's tables, over those of the recipes that it includes."""
    chain = (*included_by, path.resolve())
    if path.resolve() in included_by:
        raise UserError(f"a recipe includes itself: {' -> '.join(map(str, chain))}")
    tables = _from_its_folder(_read_toml(path), path.parent)
    names = tables.pop("include", [])
    if not isinstance(names, list):
        raise UserError(f"{path}: include = {names!r}: expected a list, for example ['paper']")
    merged: dict[str, Any] = {}
    for name in names:
        beside = [
            p for p in (path.parent / f"{name}.toml", RECIPES / f"{name}.toml") if p.is_file()
        ]
        if not beside:
            raise UserError(f"{path}: include = [{name!r}]: no such recipe beside it or in ttrl")
        merged = _merge(merged, _read_recipe(beside[0], chain))
    return _merge(merged, tables)


def _from_its_folder(tables: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the tables with the paths of files that are beside the recipe.

    Other paths are left as they are, relative to the working directory.
    """
    for section, key in _FILES:
        table = tables.get(section)
        name = table.get(key) if isinstance(table, dict) else None
        if not isinstance(name, str):
            continue
        file = name.rpartition(":")[0] if ".py:" in name else name
        if Path(file).suffix and (folder / file).is_file():
            tables = _merge(tables, {section: {key: str(folder / file) + name[len(file) :]}})
    return tables


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _model_part(model: str) -> tuple[str, dict[str, Any]]:
    """Return (short name, settings) of a model given by part name, by path, or unknown to us."""
    for name in model_names():
        part = _read_recipe(RECIPES / "models" / f"{name}.toml")
        if model.lower() in (name, part["model"]["path"].lower()):
            return name, part
    near = difflib.get_close_matches(model.lower(), model_names(), n=1, cutoff=0.8)
    if near and "/" not in model and not Path(model).exists():
        raise UserError(
            f"--model {model}: there is no folder and no model recipe of that name (did you mean "
            f"{near[0]!r}?)"
        )
    short = Path(model).name.lower()
    return short, {"model": {"path": model}}


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``over`` on top of ``under``, table by table."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _merge(below, value)
        merged[key] = value
    return merged


def _given_questions(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe for questions that are all there, whatever it was made for."""
    found = {key: value for key, value in tables.items() if key not in ("stream", "posed")}
    posed = found["data"].get("source") == "self_posed"
    found = _merge(found, {"data": {"source": "list"}})
    if not posed:
        return found
    reward, policy, rollout = (
        dict(found.get(name, {})) for name in ("reward", "policy", "rollout")
    )
    if reward.get("labels") == "checker":  # of the form of posed questions
        del reward["labels"]
    per_step = rollout.get("questions_per_step", RolloutSettings().questions_per_step)
    trained = per_step * policy.get("trained_samples", PolicySettings().trained_samples)
    if policy.get("sequences_per_update", 0) > trained:  # proposals were among them
        policy["sequences_per_update"] = trained
    return {**found, "reward": reward, "policy": policy}


def _apply_override(tables: Mapping[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"--set {override!r}: expected key=value, for example seed=1")
    if key not in _known_keys() and not key.startswith(tuple(f"{t}." for t in _OPEN_TABLES)):
        raise _unknown_key(key)
    try:
        (value,) = tomllib.loads(f"value = {text}").values()
    except (ValueError, RecursionError):  # not TOML, or more than one value: text
        value = text  # as it was typed: a suffix may begin with a space
    return _merge(tables, _nested(key, None if value == "none" else value))


def _nested(key: str, value: Any) -> dict[str, Any]:
    """Return the tables of one setting."""
    *sections, last = key.split(".")
    nested = {last: value}
    for section in reversed(sections):
        nested = {section: nested}
    return nested


def _checked(tables: Mapping[str, Any]) -> Settings:
    for key in _keys(tables):
        if key not in _known_keys():
            raise _unknown_key(key)
    try:
        return Settings.model_validate(tables)
    except pydantic.ValidationError as error:
        raise UserError(readable_errors(error)) from error


def _keys(tables: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tables.items():
        if isinstance(value, dict) and f"{prefix}{key}" not in _OPEN_TABLES:
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _known_keys() -> list[str]:
    keys = []
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            keys += [f"{name}.{key}" for key in section.model_fields]
        else:
            keys.append(name)
    return keys


def _unknown_key(key: str) -> UserError:
    hint = theirs(key) or did_you_mean(key, _known_keys())
    return UserError(f"unknown setting {key!r}{hint}")
