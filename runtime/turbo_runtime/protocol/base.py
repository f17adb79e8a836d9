"""What all parts of a request have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator


class Strict(BaseModel):
    """Model without unknown fields or numbers in strings; null means absent, as clients send it.

    Validation stops at the first problem, the only one reported: a body of 4 MiB can hold millions.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_null(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        sent = {name: item for name, item in value.items() if item is not None}
        unknown = next((name for name in sent if name not in known), None)  # the first one is rejected
        return {name: item for name, item in sent.items() if name in known or name == unknown}


def at_most(count: int) -> BeforeValidator:
    """Limit a field's number of entries, before any of them is validated."""

    def check(value: Any) -> Any:
        if isinstance(value, (list, dict)) and len(value) > count:
            raise ValueError(f"expected at most {count} entries, got {len(value)}")
        return value

    return BeforeValidator(check)


class StreamOptions(Strict):
    """Options of a stream: `include_usage` asks for one more event, with the usage of the whole request;
    vLLM's `continuous_usage_stats` for the usage so far in every event.

    OpenAI's `include_obfuscation` is no field: false asks for nothing, and true is rejected as unknown.
    """

    include_usage: bool = False
    continuous_usage_stats: bool = False

    @model_validator(mode="before")
    @classmethod
    def _drop_obfuscation(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("include_obfuscation") is not False:
            return value
        return {name: item for name, item in value.items() if name != "include_obfuscation"}
