"""The overlay that a user lays over the serving pods: a small, closed part of a pod template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from turbo_operator.api.validation import KEYED_BY_NAME, LabelValue, ObjectName, Quantity, Record, Rule, Text

Labels = Annotated[Mapping[str, LabelValue], Field(max_length=32)]


def _foreign(what: str, *prefixes: str) -> Rule:
    """A rule on labels or annotations: the operator's own prefixes are left alone."""
    free = " && ".join(f"!key.startsWith('{prefix}')" for prefix in prefixes)
    return Rule(
        f"self.all(key, {free})",
        f"choose {what} without the prefix {' or '.join(prefixes)}: it is the operator's",
        holds=lambda entries: not any(key.startswith(prefixes) for key in entries),
    )


_Labels = Annotated[Labels, _foreign("labels", "serving.turbo.dev/", "app.kubernetes.io/")]
_Annotations = Annotated[
    Mapping[str, Annotated[str, Field(strict=True, max_length=4096)]],
    Field(max_length=32),
    _foreign("annotations", "serving.turbo.dev/"),
]


class Toleration(Record):
    """A taint of nodes that pods tolerate, as in a PodSpec."""

    key: Annotated[str, Text(253)] | None = None
    """The taint's key; left out with operator Exists it stands for every taint."""
    operator: Literal["Exists", "Equal"] | None = None
    """Exists, or Equal (the default) which compares value."""
    value: LabelValue | None = None
    """The taint's value, for Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The effect tolerated; left out for all of them."""
    toleration_seconds: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)] | None = None
    """How long a NoExecute taint is borne, in seconds."""


class KeyRef(Record):
    """One key of a Secret or ConfigMap in the same namespace."""

    name: ObjectName
    """Name of the Secret or ConfigMap."""
    key: Annotated[str, Text(253)]
    """The key in it."""


class EnvSource(Record):
    """Where a variable's value comes from."""

    secret_key_ref: KeyRef | None = None
    """A key of a Secret; the kubelet reads it, never the operator."""
    config_map_key_ref: KeyRef | None = None
    """A key of a ConfigMap."""

    rules = (
        Rule(
            "has(self.secretKeyRef) != has(self.configMapKeyRef)",
            "write exactly one of secretKeyRef and configMapKeyRef",
        ),
    )


class EnvVar(Record):
    """An environment variable of the engine's container."""

    name: Annotated[
        str,
        Text(
            253, "[A-Za-z_][A-Za-z0-9_]*", "write a variable's name: letters, digits and '_', like LOG_LEVEL"
        ),
    ]
    """Name of the variable."""
    value: Annotated[str, Field(strict=True, max_length=4096)] | None = None
    """The value itself."""
    value_from: EnvSource | None = None
    """The value by reference."""

    rules = (
        Rule(
            "has(self.value) != has(self.valueFrom)",
            "write exactly one of value and valueFrom; an empty value is value: ''",
        ),
        Rule(
            "self.name != 'HF_TOKEN' && self.name != 'HF_HOME'",
            "leave HF_TOKEN and HF_HOME to the operator: write spec.model.tokenSecretRef for the token",
            "name",
        ),
    )


Amounts = Annotated[
    Mapping[str, Quantity],
    Field(max_length=8),
    Rule(
        "self.all(key, key in ['cpu', 'memory', 'ephemeral-storage'])",
        "write only cpu, memory and ephemeral-storage: accelerators come from the plan, "
        "choose them with spec.accelerators.allowed",
        holds=lambda amounts: amounts.keys() <= {"cpu", "memory", "ephemeral-storage"},
    ),
]


class Resources(Record):
    """Requests and limits of the engine's container, over those of the plan."""

    requests: Amounts | None = None
    """What a pod is guaranteed."""
    limits: Amounts | None = None
    """What a pod may use at most."""


class LocalRef(Record):
    """An object of the same namespace, by name."""

    name: ObjectName
    """Its name."""


class PodMetadata(Record):
    """Metadata of the serving pods."""

    labels: _Labels | None = None
    """Further labels of the pods, for cost accounting."""
    annotations: _Annotations | None = None
    """Further annotations of the pods."""


class PodSpec(Record):
    """What is left out, the plan decides."""

    node_selector: Labels | None = None
    """Labels that nodes must have, besides those of the accelerator."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] | None = None
    """Taints tolerated, besides those of the accelerator."""
    resources: Resources | None = None
    """CPU, memory and scratch space of the engine's container."""
    env: Annotated[tuple[EnvVar, ...] | None, Field(max_length=32), KEYED_BY_NAME] = None
    """Environment variables of the engine's container."""
    service_account_name: ObjectName | None = None
    """Service account of the pods; its token is not mounted."""
    image_pull_secrets: Annotated[tuple[LocalRef, ...] | None, Field(max_length=8), KEYED_BY_NAME] = None
    """Secrets that hold registry credentials."""
    priority_class_name: ObjectName | None = None
    """Priority class of the pods."""
    runtime_class_name: ObjectName | None = None
    """Runtime class of the pods, such as nvidia."""


class PodTemplate(Record):
    """A small overlay on the serving pods: a closed part of a pod template."""

    metadata: PodMetadata = Field(default_factory=PodMetadata)
    """Metadata of the pods."""
    spec: PodSpec = Field(default_factory=PodSpec)
    """Where the pods go, and what their engine's container gets."""
