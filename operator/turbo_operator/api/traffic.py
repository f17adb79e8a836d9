"""How requests reach the pods, and what they need there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from turbo_operator.api.validation import ObjectName, Record, Text


class ApiKeysSecretRef(Record):
    """The key of a Secret that holds API keys, one a line, as name:key; the kubelet reads it, never the
    operator, and brings a change to running pods.
    """

    name: ObjectName
    """Name of the Secret, in the same namespace."""
    key: Annotated[
        str, Text(253, r"[-._a-zA-Z0-9]+", "write a key of the Secret: letters, digits, '-', '_' and '.'")
    ] = "keys"
    """The key in it."""


class Server(Record):
    """The server of the OpenAI API in every pod."""

    api_keys_secret_ref: ApiKeysSecretRef | None = None
    """API keys that requests must have. Default: none."""


class EndpointPicker(Record):
    """What the gateway asks which pod a request goes to: a Service in the same namespace."""

    name: ObjectName | None = None
    """Name of the Service. Default: NAME-epp, as the Helm chart inferencepool of the Gateway API Inference
    Extension calls it in a release NAME.
    """
    port: Annotated[int, Field(strict=True, ge=1, le=65535)] = 9002
    """Port of the Service."""
    failure_mode: Literal["FailClose", "FailOpen"] = "FailClose"
    """What the gateway does with a request while the endpoint picker does not answer. FailClose: it refuses
    it. FailOpen: it chooses a pod itself.
    """


class Gateway(Record):
    """How an inference gateway finds its way to the pods."""

    endpoint_picker: EndpointPicker = Field(default_factory=EndpointPicker)
    """What it asks which pod a request goes to."""
