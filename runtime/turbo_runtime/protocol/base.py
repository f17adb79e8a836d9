"""What all parts of a request have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator


class Strict(BaseModel):
    """No unknown field, no number in a string; null means absent, as clients send what they leave out.

    Problems are looked for until one is found, for one is told: a body of 4 MiB can hold millions.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_means_absent(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        sent = {name: one for name, one in value.items() if one is not None}
        kept = {name: one for name, one in sent.items() if name in known}
        if unknown := next((name for name in sent if name not in known), None):
            kept[unknown] = sent[unknown]  # the first of them is refused
        return kept


def at_most(count: int) -> BeforeValidator:
    """For a field with so many entries at most: told before any of them is looked at."""

    def checked(value: Any) -> Any:
        if isinstance(value, (list, dict)) and len(value) > count:
            raise ValueError(f"expected at most {count} entries, got {len(value)}")
        return value

    return BeforeValidator(checked)


class StreamOptions(Strict):
    """`include_usage` asks for one more event, with the usage of the whole request; vLLM's
    `continuous_usage_stats` for the usage so far in every event. OpenAI's `include_obfuscation` is not there:
    false asks for nothing, true is refused as what is not known.
    """

    include_usage: bool = False
    continuous_usage_stats: bool = False

    @model_validator(mode="before")
    @classmethod
    def _no_obfuscation_is_none(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("include_obfuscation") is not False:
            return value
        return {name: one for name, one in value.items() if name != "include_obfuscation"}
