"""Every setting with its values, default and meaning, from the settings' own types."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ttrl.settings.settings import Settings

HEAD = """# Settings

All of them, made by `ttrl settings --format markdown`; a test holds this page to the code. In a
recipe, a TOML file, each `##` below is a table; on the command line `--set rollout.votes=32`
changes one, and `none` unsets it. [What TRL and verl call them](coming_from.md).
"""


@dataclass(frozen=True, slots=True)
class Explained:
    """A setting, explained.

    Example: ``Explained("seed", "integer, 0 to 4294967295", "0", "Decides the order of ...")``.
    """

    key: str
    """Its name, "rollout.votes"."""
    values: str
    """What it may be."""
    default: str
    """As in a recipe; empty where it must be given."""
    meaning: str
    """Its docstring."""


def explained_settings() -> dict[str, tuple[str, list[Explained]]]:
    """Return per section what it is about, and its settings; "" is what is in no section."""
    schema, top = Settings.model_json_schema(), _docstrings(Settings)
    sections: dict[str, tuple[str, list[Explained]]] = {"": ("Of the whole run.", [])}
    for name, field in schema["properties"].items():
        section = schema["$defs"].get(field.get("$ref", "").removeprefix("#/$defs/"))
        if section is None:
            sections[""][1].append(_explained(name, field, name in schema["required"], top))
            continue
        required = section.get("required", ())
        own = _docstrings(Settings.model_fields[name].annotation)
        sections[name] = (
            _one_line(section.get("description", "")),
            [
                _explained(f"{name}.{key}", found, key in required, own)
                for key, found in section["properties"].items()
            ],
        )
    return sections


def settings_page() -> str:
    """Return ``docs/settings.md``."""
    parts = [HEAD]
    for name, (about, settings) in explained_settings().items():
        parts.append(f"## {name or 'At the top'}\n\n{about}\n")
        parts.append("| setting | values | default | meaning |\n|---|---|---|---|")
        for s in settings:
            cells = (f"`{s.key}`", s.values, f"`{s.default}`" if s.default else "", s.meaning)
            parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        parts.append("")
    return "\n".join(parts)


def _docstrings(section: Any) -> dict[str, str]:
    """Return what is written below each field of a class.

    pydantic would look for it whenever the settings are imported, and that takes as long as the
    import.
    """
    (found,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(found, ast.ClassDef), section
    return {
        field.target.id: below.value.value
        for field, below in pairwise(found.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(below.value.value, str)
    }


def _explained(
    key: str, field: Mapping[str, Any], required: bool, docstrings: Mapping[str, str]
) -> Explained:
    default = "" if required or "default" not in field else _toml(field["default"])
    meaning = docstrings.get(key.rpartition(".")[2], "")
    return Explained(key, _values(field), default, _one_line(meaning))


def _values(field: Mapping[str, Any]) -> str:
    """Say what a JSON schema allows."""
    if "anyOf" in field:
        return " or ".join(map(_values, field["anyOf"]))
    if "enum" in field:
        return ", ".join(f'"{value}"' for value in field["enum"])
    if "const" in field:
        return f'"{field["const"]}"'
    kind = field.get("type")
    if kind == "array":
        of = field.get("prefixItems") or [field.get("items", {})]
        return f"list of {', '.join(map(_values, of))}"
    names = {
        "string": "text",
        "boolean": "true or false",
        "null": "none",
        "object": "table",
        "integer": "integer",
        "number": "number",
    }
    return names.get(str(kind), "any") + _range(field)


def _range(field: Mapping[str, Any]) -> str:
    low, above = field.get("minimum"), field.get("exclusiveMinimum")
    high, below = field.get("maximum"), field.get("exclusiveMaximum")
    limits = [
        f"{word} {limit}"
        for word, limit in (("≥", low), (">", above), ("≤", high), ("<", below))
        if limit is not None and limit < 2**31  # that no number may be larger is of no interest
    ]
    return f" {' and '.join(limits)}" if limits else ""


def _toml(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())
