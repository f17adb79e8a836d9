"""The kind TurboAccelerator: what one accelerator of a class is, holds and costs."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from turbo_operator.api.deployment import Metadata
from turbo_operator.api.fields import CEL_RULES, Amount, Quantity, Record, Text, quantity, refusal
from turbo_operator.api.names import API_VERSION, TURBOACCELERATOR
from turbo_operator.api.template import NodeSelector, Toleration

_MEMORY_MESSAGE = 'write GiB above 0, whole or as a string, like 80 or "22.5"'


def _read_memory(value: object) -> Decimal:
    if isinstance(value, Decimal):
        return value
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            amount_of_memory = quantity(str(value))
        except ValueError:
            pass  # refused below, in the words that the API server uses
        else:
            if str(value)[-1].isdigit() and amount_of_memory > 0:
                return amount_of_memory
    raise refusal(_MEMORY_MESSAGE)


MemoryGiB = Annotated[
    Decimal,
    BeforeValidator(_read_memory),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "maxLength": 16,
            CEL_RULES: [
                {
                    "rule": r"type(self) == int ? self > 0 : (string(self).matches(r'^\d{1,9}(\.\d{1,6})?$')"
                    " && double(string(self)) > 0.0)",
                    "message": _MEMORY_MESSAGE,
                }
            ],
        }
    ),
]


class PerAcceleratorHour(Record):
    """Prices of one accelerator for one hour."""

    on_demand: (
        Annotated[
            Decimal, Amount('write dollars per accelerator and hour as a string, like "0.80"', positive=False)
        ]
        | None
    ) = None
    """On demand; left out is unknown, never zero."""


class Pricing(Record):
    """What one accelerator costs, and who says so."""

    per_accelerator_hour: PerAcceleratorHour
    """Prices of one accelerator for one hour."""
    currency: Literal["USD"] = "USD"
    """US dollars."""
    source: Annotated[str, Text(253)] | None = None
    """Where the price comes from; shown beside it."""
    as_of: Annotated[str, Text(10, r"\d{4}-\d{2}-\d{2}", "write a day, like 2026-01-19")] | None = None
    """The day it was right."""


class TurboAcceleratorSpec(Record):
    """One class of accelerator."""

    resource_name: Annotated[
        str,
        Text(
            253,
            r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?",
            "write a resource that nodes have, like nvidia.com/gpu or cpu",
        ),
    ]
    """The resource of nodes that is asked for, like nvidia.com/gpu or cpu."""
    quantity: Quantity = "1"
    """How much of the resource makes one accelerator: of resource cpu, that many cores."""
    node_selector: NodeSelector | None = None
    """Labels of the nodes that have it."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] | None = None
    """Taints of the nodes that have it."""
    memory_gib: Annotated[MemoryGiB, Field(alias="memoryGiB")]
    """Memory of one accelerator in GiB."""
    pricing: Pricing | None = None
    """What one accelerator costs; left out is unknown, never zero."""


class TurboAccelerator(Record):
    """A class of accelerators that the planner may choose from: what one is, holds and costs."""

    api_version: Literal["serving.turbo.dev/v1alpha1"] = API_VERSION
    kind: Literal["TurboAccelerator"] = TURBOACCELERATOR
    metadata: Metadata
    spec: TurboAcceleratorSpec
    """What it is."""
