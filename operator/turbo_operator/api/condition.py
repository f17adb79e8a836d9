"""What kinds of status share: their base, and a condition."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from turbo_operator.api.validation import Record

Word = Annotated[str, Field(max_length=253)]
Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Count = Annotated[int, Field(ge=0)]


class StatusRecord(Record):
    """Base of what the operator writes; unknown fields, of a newer operator, are passed over."""

    model_config = ConfigDict(extra="ignore")


class Condition(StatusRecord):
    """One aspect of the state, with a reason and a full sentence."""

    type: Word
    """Which aspect."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Word
    """Why, in one word."""
    message: Annotated[str, Field(max_length=32768)]
    """Why, in a sentence."""
    last_transition_time: Timestamp
    """When status last changed (RFC 3339, UTC)."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The generation of the spec that this speaks of."""
