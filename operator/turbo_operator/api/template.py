"""The overlay that a user lays over the serving pods: a small, closed set of fields, not a PodSpec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from turbo_operator.api.validation import (
    CEL_RULES,
    LabelValue,
    ObjectName,
    Quantity,
    Record,
    Rule,
    Text,
    refusal,
)

OWN_PREFIXES = ("serving.turbo.dev/", "app.kubernetes.io/")

NodeSelector = Annotated[Mapping[str, LabelValue], Field(max_length=32)]
"""Labels that a node must have."""


@dataclass(frozen=True)
class OwnKeys:
    """Annotation of a map of labels or annotations that leaves the operator's own prefixes alone."""

    what: str
    own_prefixes: tuple[str, ...]
    max_length: int  # of a value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(entries: Mapping[str, str]) -> Mapping[str, str]:
            if any(key.startswith(self.own_prefixes) for key in entries):
                raise refusal(self._message)
            return entries

        value = core_schema.str_schema(strict=True, max_length=self.max_length)
        entries = core_schema.dict_schema(core_schema.str_schema(strict=True), value, max_length=32)
        return core_schema.no_info_after_validator_function(check, entries)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        free = " && ".join(f"!key.startsWith('{prefix}')" for prefix in self.own_prefixes)
        return {
            "type": "object",
            "maxProperties": 32,
            "additionalProperties": {"type": "string", "maxLength": self.max_length},
            CEL_RULES: [{"rule": f"self.all(key, {free})", "message": self._message}],
        }

    @property
    def _message(self) -> str:
        return f"choose {self.what} without the prefix {' or '.join(self.own_prefixes)}: it is the operator's"


class TolerationOperator(StrEnum):
    """How a toleration compares."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(StrEnum):
    """The effect of a taint that is tolerated."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(Record):
    """A taint of nodes that pods tolerate, as in a PodSpec."""

    key: Annotated[str, Text(253)] | None = None
    """The taint's key; left out with operator Exists it stands for every taint."""
    operator: TolerationOperator | None = None
    """Exists, or Equal (the default) which compares value."""
    value: LabelValue | None = None
    """The taint's value, for Equal."""
    effect: TaintEffect | None = None
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
            lambda it: (it.secret_key_ref is None) != (it.config_map_key_ref is None),
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
            lambda it: (it.value is None) != (it.value_from is None),
        ),
        Rule(
            "self.name != 'HF_TOKEN' && self.name != 'HF_HOME'",
            "leave HF_TOKEN and HF_HOME to the operator: write spec.model.tokenSecretRef for the token",
            lambda it: it.name not in ("HF_TOKEN", "HF_HOME"),
            "name",
        ),
    )


def _only_plain_resources(amounts: Mapping[str, str]) -> Mapping[str, str]:
    if not amounts.keys() <= {"cpu", "memory", "ephemeral-storage"}:
        raise refusal(_RESOURCES_MESSAGE)
    return amounts


_RESOURCES_MESSAGE = (
    "write only cpu, memory and ephemeral-storage: accelerators come from the plan, "
    "choose them with spec.accelerators.allowed"
)
Amounts = Annotated[
    Mapping[str, Quantity],
    Field(
        max_length=8,
        json_schema_extra={
            CEL_RULES: [
                {
                    "rule": "self.all(key, key in ['cpu', 'memory', 'ephemeral-storage'])",
                    "message": _RESOURCES_MESSAGE,
                }
            ]
        },
    ),
    AfterValidator(_only_plain_resources),
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


class Template(Record):
    """A small overlay on the serving pods; what is left out, the plan decides."""

    labels: Annotated[Mapping[str, str], OwnKeys("labels", OWN_PREFIXES, 63)] | None = None
    """Further labels of the pods, for cost accounting."""
    annotations: Annotated[Mapping[str, str], OwnKeys("annotations", OWN_PREFIXES[:1], 4096)] | None = None
    """Further annotations of the pods."""
    node_selector: NodeSelector | None = None
    """Labels that nodes must have, besides those of the accelerator."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] | None = None
    """Taints tolerated, besides those of the accelerator."""
    resources: Resources | None = None
    """CPU, memory and scratch space of the engine's container."""
    env: (
        Annotated[
            tuple[EnvVar, ...],
            Field(max_length=32, json_schema_extra={"x-kubernetes-list-map-keys": ["name"]}),
        ]
        | None
    ) = None
    """Environment variables of the engine's container."""
    service_account_name: ObjectName | None = None
    """Service account of the pods; its token is not mounted."""
    image_pull_secrets: (
        Annotated[
            tuple[LocalRef, ...],
            Field(max_length=8, json_schema_extra={"x-kubernetes-list-map-keys": ["name"]}),
        ]
        | None
    ) = None
    """Secrets that hold registry credentials."""
    priority_class_name: ObjectName | None = None
    """Priority class of the pods."""
    runtime_class_name: ObjectName | None = None
    """Runtime class of the pods, such as nvidia."""
