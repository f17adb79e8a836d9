"""The kind TurboDraft: one version of a draft that was trained for one model."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from turbo_operator.api.constants import API_VERSION, TURBODRAFT
from turbo_operator.api.validation import Amount, Metadata, ObjectName, Record, Text, below_root

_Digest = Annotated[
    str,
    Text(71, r"sha256:[0-9a-f]{64}", "write the digest that `turbo drafts show` tells, like sha256:4f5..."),
]
_Ratio = Annotated[Decimal, Amount('write a number as a string, like "2.35"', positive=False)]


class DraftLocation(Record):
    """Where its folder lies."""

    claim_name: ObjectName
    """A PersistentVolumeClaim of the same namespace, which every serving pod mounts."""
    path: Annotated[
        str, below_root("write a folder below the claim's root, like drafts/support-1, without '..'")
    ]
    """The folder below the claim's root."""


class Speedup(Record):
    """What was measured at so many requests at a time."""

    batch_size: Annotated[int, Field(strict=True, ge=1, le=4096)]
    """Requests at a time."""
    suffix_only: _Ratio | None = None
    """Speed over no drafts, of what is drafted from memory alone."""
    with_draft: _Ratio
    """Speed over no drafts, with this one beside it."""


class DomainEvaluation(Record):
    """What it is worth on one kind of traffic, on prompts that it has not learned from."""

    domain: Annotated[str, Text(253)]
    """Its name."""
    acceptance_length: _Ratio | None = None
    """Tokens of a verified draft, the model's own one included."""
    acceptance_per_position: Annotated[tuple[_Ratio, ...], Field(max_length=64)] | None = None
    """That the token drafted there is right, all before it being so."""
    speedups: Annotated[tuple[Speedup, ...], Field(max_length=8)] | None = None
    """Measured where it was trained."""


class TurboDraftSpec(Record):
    """What it is and where."""

    method: Literal["TurboHeads", "EAGLE3"]
    """How it drafts: TurboHeads are for engine Turbo, EAGLE3 is for both engines."""
    location: DraftLocation
    """Where its folder lies."""
    version: Annotated[str, Text(253)]
    """As its config.json and /version of a pod have it."""
    digest: _Digest
    """Of its configuration and tensors."""
    target_digest: Annotated[str, Text(253)]
    """Of the model that it was trained for, as status.model.digest of a TurboDeployment has it."""
    deployment_name: ObjectName | None = None
    """The TurboDeployment of the same namespace whose candidate it is. Default: nobody's."""
    domain: Annotated[str, Text(253)] | None = None
    """What it was trained for, in a word."""
    evaluation: Annotated[tuple[DomainEvaluation, ...], Field(max_length=64)] | None = None
    """What it is worth, by kind of traffic."""


class TurboDraft(Record):
    """One version of a draft that was trained for one model, and where it lies."""

    api_version: Literal["serving.turbo.dev/v1alpha1"] = API_VERSION
    kind: Literal["TurboDraft"] = TURBODRAFT
    metadata: Metadata
    spec: TurboDraftSpec
    """What it is and where."""
