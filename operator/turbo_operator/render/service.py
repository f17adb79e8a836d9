"""The Service over the pods of all variants. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turbo_operator.api import ROLE_SERVING, TurboDeployment
from turbo_operator.render.metadata import labels, metadata, sealed
from turbo_runtime.contract.endpoints import PORT_NAME

SERVICE_PORT = 80


def service(td: TurboDeployment, selector: Mapping[str, str]) -> dict[str, Any]:
    """`NAME`: port 80 of it is the OpenAI API."""
    port = {"name": PORT_NAME, "port": SERVICE_PORT, "targetPort": PORT_NAME, "protocol": "TCP"}
    return sealed(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(td, td.metadata.name, labels(td, ROLE_SERVING)),
            "spec": {"selector": dict(selector), "ports": [port]},
        }
    )


def url(td: TurboDeployment) -> str:
    """Base URL of the OpenAI API, as pods of the cluster reach it; 80 is the port of http."""
    return f"http://{td.metadata.name}.{td.metadata.namespace}.svc/v1"
