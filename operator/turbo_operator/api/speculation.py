"""Speculative decoding: a TurboDeployment's drafts, the prompts kept for them, and how they are trained."""

from __future__ import annotations

import re
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from turbo_operator.api.validation import (
    DNS_LABEL,
    KEYED_BY_NAME,
    Amount,
    Duration,
    Fraction,
    ModelSource,
    ModelURI,
    ObjectName,
    Quantity,
    Record,
    Rule,
    Text,
    below_root,
    refusal,
)

_PATH = "write a file or folder below the claim's root, like prompts/support.jsonl, without '..'"


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
    sample_fraction: Fraction = Decimal(1)
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
        ),
    ] = Duration("720h")
    """Of a prompt."""
    redact: Annotated[
        list[Annotated[str, Text(512), AfterValidator(_is_pattern)]] | None, Field(max_length=32)
    ] = None
    """Regular expressions; what they match is taken out of prompts before they are written."""


class DraftsClaim(Record):
    """A PersistentVolumeClaim that a training writes to and serving pods read."""

    claim_name: ObjectName
    """Name of the claim, in the same namespace."""


class PromptsConfigMap(Record):
    """A ConfigMap of prompts."""

    name: ObjectName
    """Its name, in the same namespace."""
    key: Annotated[str, Text(253, r"[-._A-Za-z0-9]+", "write a key of the ConfigMap, like prompts.jsonl")] = (
        "prompts.jsonl"
    )
    """The key that holds JSON lines, one prompt each."""


class PromptsClaim(DraftsClaim):
    """Prompts on a PersistentVolumeClaim."""

    path: Annotated[str, below_root(_PATH)]
    """A file of JSON lines, or a folder of such files, below the claim's root."""


class Prompts(Record):
    """The prompts that the model answers, so that a draft learns from its answers."""

    type: Literal["Captured", "ConfigMap", "PersistentVolumeClaim"]
    """Captured: prompts of this deployment's own traffic, which spec.capture keeps."""
    config_map: PromptsConfigMap | None = None
    """Prompts of a ConfigMap."""
    persistent_volume_claim: PromptsClaim | None = None
    """Prompts on a claim."""

    rules = (
        Rule(
            "has(self.configMap) == (self.type == 'ConfigMap')",
            "write configMap with the type ConfigMap, and with no other",
            "configMap",
        ),
        Rule(
            "has(self.persistentVolumeClaim) == (self.type == 'PersistentVolumeClaim')",
            "write persistentVolumeClaim with the type PersistentVolumeClaim, and with no other",
            "persistentVolumeClaim",
        ),
    )


class Trigger(Record):
    """When a draft is trained again."""

    speedup_below: Annotated[Decimal, Amount('write a number above 0 as a string, like "1.30"')] | None = None
    """Train again once the measured speedup of what serves has stayed below this for the window; not while a
    draft is yet to be tried. Default: a draft is trained once for each model."""
    window: Annotated[
        Duration,
        Text(16, r"\d{1,6}(s|m|h)", "write seconds, minutes or hours, like 24h, at most 8760h"),
        Rule(
            r"!self.matches(r'^\d{1,6}(s|m|h)$') || duration(self) <= duration('8760h')"
            " && duration(self) >= duration('1s')",
            "write seconds, minutes or hours, like 24h, at least 1s and at most 8760h",
        ),
    ] = Duration("24h")
    """How long the speedup must stay below. After a failed training on captured prompts, the next one waits
    as long."""
    min_prompts: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 300
    """Of captured prompts: how many pods must have kept before the first training."""


class Training(Record):
    """A draft that the operator has trained by a Job, from the model's own answers."""

    suspend: Annotated[bool, Field(strict=True)] = False
    """True stops a training that runs and starts none; drafts stay."""
    persistent_volume_claim: DraftsClaim
    """Where drafts are kept, in a folder of the deployment's name, whose folders with a number are the
    operator's; with pods on several nodes a claim that several may mount."""
    prompts: Prompts
    """What the model is asked."""
    trigger: Trigger = Field(default_factory=Trigger)
    """When a draft is trained again."""
    accelerator_name: ObjectName | None = None
    """The TurboAccelerator to train on. Default: the cheapest that fits and has room."""
    max_cost: Annotated[Decimal, Amount('write US dollars as a string, like "5.00"')] | None = None
    """US dollars of one training at most, also of one that runs. Default: no bound."""
    domain: Annotated[str, Text(253)] | None = None
    """What the draft is for, in a word; also the domain of captured prompts, and of those of a single file,
    that name none. Default: the deployment's name."""
    max_output_tokens: Annotated[int, Field(strict=True, ge=2, le=16_384)] = 256
    """Tokens of an output at most."""


class Method(StrEnum):
    """Where drafts come from."""

    AUTO = "Auto"
    SUFFIX = "Suffix"
    N_GRAM = "NGram"
    TURBO_HEADS = "TurboHeads"
    EAGLE3 = "EAGLE3"
    DRAFT_MODEL = "DraftModel"
    MTP = "MTP"


class DraftModel(ModelSource):
    """A model that drafts."""

    uri: ModelURI
    """hf://, pvc:// or oci://, as of the model."""

    rules = (
        Rule(
            "!self.uri.startsWith('s3://')",
            "write hf://, pvc:// or oci://: draft models in buckets are not supported yet",
            "uri",
        ),
    )


class DraftRef(Record):
    """A draft that was trained for the model."""

    name: ObjectName
    """Name of a TurboDraft in the same namespace."""


class NamedDraft(Record):
    """A further draft, that a request chooses by the header X-Turbo-Draft."""

    name: Annotated[
        str, Text(63, DNS_LABEL, "write a name of lower-case letters, digits and '-', like latex")
    ]
    """What the header says; default is the deployment's own draft."""
    draft_ref: DraftRef
    """The TurboDraft; it must lie on the claim of the deployment's own drafts."""

    rules = (
        Rule("self.name != 'default'", "choose another name: default is the deployment's own draft", "name"),
    )


class Speculation(Record):
    """Speculative decoding: drafts that the model itself verifies, so that the text stays the same."""

    mode: Literal["Auto", "Required", "Disabled"] = "Auto"
    """Auto leaves it to the planner, Required takes no plan without speculation, Disabled none with it."""
    method: Method = Method.AUTO
    """Suffix drafts from what was said before, NGram from the request alone; the others learn or are models.
    Auto leaves it to the planner."""
    draft_ref: DraftRef | None = None
    """A draft that was trained for the model: TurboHeads for engine Turbo, or EAGLE3 where method says so.
    Turbo takes up another one of the same claim without a restart. EAGLE3 for VLLM, where another one is a
    rollout."""
    training: Training | None = None
    """Drafts that the operator has trained: TurboHeads, or an EAGLE-3 layer with engine VLLM and where method
    is EAGLE3. Default: none are."""
    named_drafts: Annotated[tuple[NamedDraft, ...] | None, Field(max_length=8), KEYED_BY_NAME] = None
    """Further drafts, for requests that choose one by the header X-Turbo-Draft."""
    draft_model: DraftModel | None = None
    """The draft of method DraftModel, a small model, or of method EAGLE3, a layer that was trained for the
    model."""
    placement: Literal["Auto", "Colocated", "Separate", "CPU"] = "Auto"
    """Where a draft model runs: with the model, or with engine Turbo on an accelerator of its own in the same
    pod, or on cores of the host. Auto leaves it to the planner."""
    max_draft_tokens: Annotated[int, Field(strict=True, ge=0, le=64)] | None = None
    """Ceiling of drafted tokens per request and step; the engine chooses below it. Default: 32 with engine
    Turbo, 8 with VLLM."""

    @property
    def has_trained(self) -> bool:
        """Whether drafts that are trained for the model may join."""
        return bool(self.draft_ref or self.training or self.named_drafts)

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
            "self.mode != 'Required' || !has(self.maxDraftTokens) || self.maxDraftTokens > 0",
            "write maxDraftTokens of at least 1, or mode: Disabled: mode Required cannot draft 0 tokens",
            "maxDraftTokens",
        ),
        Rule(
            "!has(self.draftModel) || self.method in ['Auto', 'DraftModel', 'EAGLE3']",
            "leave draftModel out, or write method: DraftModel or EAGLE3: no other method uses one",
            "draftModel",
        ),
        Rule(
            "!has(self.draftRef) || !has(self.draftModel) && self.method in ['Auto', 'TurboHeads', 'EAGLE3']",
            "leave draftRef out, or write method: Auto or EAGLE3 without a draftModel: a trained draft goes "
            "with no other method",
            "draftRef",
        ),
        Rule(
            "!has(self.training) || !has(self.draftRef) && !has(self.draftModel)"
            " && self.method in ['Auto', 'TurboHeads', 'EAGLE3']",
            "leave training out, or write method: Auto or EAGLE3 without draftRef and draftModel: what is "
            "trained are TurboHeads or an EAGLE-3 layer, taken into use by the operator",
            "training",
        ),
        Rule(
            "!has(self.namedDrafts) || has(self.draftRef) || has(self.training)",
            "leave namedDrafts out, or write draftRef or training beside it: those are on the claim of the "
            "deployment's own drafts",
            "namedDrafts",
        ),
        Rule(
            "!(self.method in ['DraftModel', 'EAGLE3']) || has(self.draftModel)"
            " || self.method == 'EAGLE3' && (has(self.draftRef) || has(self.training))",
            "name the draft in draftModel.uri, or for EAGLE3 in draftRef, or write training: methods "
            "DraftModel and EAGLE3 need one",
            "method",
        ),
        Rule(
            "!(self.placement in ['Separate', 'CPU']) || has(self.draftModel) && self.method != 'EAGLE3'",
            "leave placement out, or name a draftModel with method DraftModel: only a model of its own can "
            "run elsewhere",
            "placement",
        ),
    )
