"""Speculative decoding: the part of a TurboDeployment about drafts."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from turbo_operator.api.training import Training
from turbo_operator.api.validation import KEYED_BY_NAME, ModelURI, ObjectName, Record, Rule, Text


class Method(StrEnum):
    """Where drafts come from."""

    AUTO = "Auto"
    SUFFIX = "Suffix"
    TURBO_HEADS = "TurboHeads"
    EAGLE3 = "EAGLE3"
    DRAFT_MODEL = "DraftModel"
    MTP = "MTP"


class DraftModel(Record):
    """A small model that drafts."""

    uri: ModelURI
    """hf://ORGANISATION/NAME or pvc://CLAIM/PATH, as of the model."""


class DraftRef(Record):
    """A draft that was trained for the model."""

    name: ObjectName
    """Name of a TurboDraft in the same namespace."""


class NamedDraft(Record):
    """A further draft, that a request chooses by the header X-Turbo-Draft."""

    name: Annotated[
        str,
        Text(
            63,
            r"[a-z0-9]([-a-z0-9]*[a-z0-9])?",
            "write a name of lower-case letters, digits and '-', like latex",
        ),
    ]
    """What the header says; default is the deployment's own draft."""
    draft_ref: DraftRef
    """The TurboDraft; it must lie on the claim of the deployment's own drafts."""

    rules = (
        Rule(
            "self.name != 'default'",
            "choose another name: default is the deployment's own draft",
            "name",
        ),
    )


class Speculation(Record):
    """Speculative decoding: drafts that the model itself verifies, so that the text stays the same."""

    mode: Literal["Auto", "Required", "Disabled"] = "Auto"
    """Auto leaves it to the planner, Required takes no plan without speculation, Disabled none with it."""
    method: Method = Method.AUTO
    """Suffix drafts from what was said before, the others learn or are models; Auto leaves it to
    the planner."""
    draft_ref: DraftRef | None = None
    """A draft that was trained for the model; another one of the same claim is taken up without a restart."""
    training: Training | None = None
    """Drafts that the operator has trained. Default: none are."""
    named_drafts: Annotated[
        tuple[NamedDraft, ...] | None, Field(max_length=8, json_schema_extra=KEYED_BY_NAME)
    ] = None
    """Further drafts, for requests that choose one by the header X-Turbo-Draft."""
    draft_model: DraftModel | None = None
    """The small model of method DraftModel."""
    placement: Literal["Auto", "Colocated", "Separate", "CPU"] = "Auto"
    """With the model, on an accelerator of its own in the same pod, or on cores; Auto leaves it to the
    planner."""
    max_draft_tokens: Annotated[int, Field(strict=True, ge=0, le=64)] = 8
    """Ceiling of drafted tokens per request and step; the engine chooses below it."""

    rules = (
        Rule(
            "self.mode != 'Disabled' || self.method == 'Auto'",
            "leave method out, or write mode: Auto: mode Disabled drafts nothing",
            "method",
        ),
        Rule(
            "self.mode != 'Disabled' || !has(self.draftRef) && !has(self.draftModel) && !has(self.training)",
            "leave draftRef, draftModel and training out, or write mode: Auto: mode Disabled drafts nothing",
            "mode",
        ),
        Rule(
            "self.mode != 'Required' || self.maxDraftTokens > 0",
            "write maxDraftTokens of at least 1, or mode: Disabled: mode Required cannot draft 0 tokens",
            "maxDraftTokens",
        ),
        Rule(
            "!has(self.draftModel) || self.method in ['Auto', 'DraftModel']",
            "leave draftModel out, or write method: DraftModel: no other method uses one",
            "draftModel",
        ),
        Rule(
            "!has(self.draftRef) || !has(self.draftModel) && self.method in ['Auto', 'TurboHeads', 'EAGLE3']",
            "leave draftRef out, or write method: Auto without a draftModel: a trained draft goes with no "
            "other method",
            "draftRef",
        ),
        Rule(
            "!has(self.training) || !has(self.draftRef) && !has(self.draftModel)"
            " && self.method in ['Auto', 'TurboHeads']",
            "leave training out, or write method: Auto without draftRef and draftModel: what is trained are "
            "TurboHeads, taken into use by the operator",
            "training",
        ),
        Rule(
            "!has(self.namedDrafts) || has(self.draftRef) || has(self.training)",
            "leave namedDrafts out, or write draftRef or training beside it: those are on the claim of the "
            "deployment's own drafts",
            "namedDrafts",
        ),
        Rule(
            "self.method != 'DraftModel' || has(self.draftModel)",
            "name the draft model in draftModel.uri: method DraftModel needs one",
            "method",
        ),
        Rule(
            "!(self.placement in ['Separate', 'CPU']) || has(self.draftModel)",
            "leave placement out, or name a draftModel: only a model of its own can run elsewhere",
            "placement",
        ),
    )
