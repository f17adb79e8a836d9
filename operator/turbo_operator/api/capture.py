"""Keeping prompts: the part of a TurboDeployment about what drafts may learn from."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, Field

from turbo_operator.api.validation import Duration, ObjectName, Quantity, Record, Rule, Text, amount, refusal


def _is_pattern(text: str) -> str:
    """What the API server cannot try, the operator does before a pod would."""
    try:
        re.compile(text)
    except re.error as error:
        raise refusal(f"write a regular expression: {error}") from error
    return text


class CaptureClaim(Record):
    """A PersistentVolumeClaim that pods may write to."""

    claim_name: ObjectName
    """Name of the claim, in the same namespace; with several replicas one that several nodes may mount."""


class Capture(Record):
    """Prompts of this deployment's own traffic, kept for drafts to learn from. A request refuses by the
    header X-Turbo-Capture: off.
    """

    suspend: Annotated[bool, Field(strict=True)] = False
    """True keeps no further prompt, and leaves what is kept."""
    persistent_volume_claim: CaptureClaim
    """Where prompts are kept, in a folder of the deployment's name."""
    sample_fraction: Annotated[
        Decimal, amount('write a fraction from "0" to "1" as a string, like "0.10"', positive=False)
    ] = Decimal(1)
    """Share of the requests that is kept."""
    max_size: Quantity = "1Gi"
    """Of the folder; the oldest prompts go first."""
    max_age: Annotated[
        Duration,
        Text(16, r"\d{1,4}h", "write hours, like 720h, at most 8760h"),
        Rule(
            r"!self.matches(r'^\d{1,4}h$') || duration(self) <= duration('8760h')"
            " && duration(self) > duration('0s')",
            "write hours, like 720h, at least 1h and at most 8760h",
            lambda duration: 3600 <= duration.seconds <= 8760 * 3600,
        ),
    ] = Duration("720h")
    """Of a prompt."""
    redact: Annotated[
        list[Annotated[str, Text(512), AfterValidator(_is_pattern)]] | None, Field(max_length=32)
    ] = None
    """Regular expressions; what they match is taken out of prompts before they are written."""

    rules = (
        Rule(
            "double(self.sampleFraction) <= 1.0",
            'write a fraction from "0" to "1" as a string, like "0.10"',
            lambda it: it.sample_fraction <= 1,
            "sampleFraction",
        ),
    )
