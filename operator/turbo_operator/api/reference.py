"""Parts of a status: the Deployment that a plan is recommended for, and what a plan saves."""

from __future__ import annotations

from turbo_operator.api.condition import Count, StatusRecord, Timestamp, Word


class ReferenceStatus(StatusRecord):
    """The Deployment of spec.planPolicy.deploymentRef, and its load, in steps of ten per cent."""

    name: Word
    """Its name."""
    replicas: Count = 0
    """Pods that it asks for."""
    ready_replicas: Count = 0
    """Pods that answer."""
    accelerator: Word | None = None
    """The TurboAccelerator that its pods run on; absent where there is none of their nodes."""
    accelerators: Count = 0
    """Of all its pods that are on a node."""
    cost_per_hour: Word | None = None
    """Of those, in US dollars per hour; absent where the price is not known."""
    requests_per_second: Word | None = None
    """In the busiest ten minutes of the last day."""
    input_tokens: Count | None = None
    """Mean of a prompt then."""
    output_tokens: Count | None = None
    """Mean of an output then."""
    busiest_time: Timestamp | None = None
    """The end of those ten minutes (RFC 3339, UTC)."""


class Saving(StatusRecord):
    """What speculation saves of the same targets without it, by the measured speedup; with planPolicy.apply
    Recommend what the plan saves of what the Deployment costs.
    """

    accelerators: int
    """Fewer accelerators; below 0 where there are more, and cheaper ones."""
    per_hour: Word
    """US dollars per hour."""
