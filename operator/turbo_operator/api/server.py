"""How the serving pods are reached: the part of a TurboDeployment about their server."""

from __future__ import annotations

from typing import Annotated

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
    """API keys that requests must bear. Default: none are asked for."""
