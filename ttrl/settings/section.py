"""The base of all sections of the settings: strictness, and ranges of numbers."""

from __future__ import annotations

from typing import Annotated, get_args

import pydantic
from pydantic import Field

Positive = Annotated[int, Field(gt=0, lt=2**31)]
Count = Annotated[int, Field(gt=0, le=2**16)]
Temperature = Annotated[float, Field(ge=0.01, le=10)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(pydantic.BaseModel):
    """Base of all settings, which are frozen, strict in their types, and have no unknown keys."""

    model_config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _none_is_a_kind(cls, value: object, info: pydantic.ValidationInfo) -> object:
        """Choose "none" by ``--set KEY=none`` where that is a choice; else unset the key."""
        chosen = info.field_name and "none" in get_args(
            cls.model_fields[info.field_name].annotation
        )
        return "none" if value is None and chosen else value
