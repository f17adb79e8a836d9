"""The InferencePool by which an inference gateway finds the pods. Pure.

It is of the Gateway API Inference Extension: https://gateway-api-inference-extension.sigs.k8s.io
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turbo_operator import api
from turbo_operator.render import metadata
from turbo_operator.snapshot import Presence, Snapshot
from turbo_runtime.contract.endpoints import PORT

_LACKS = {
    Presence.ABSENT: "InferencePool (inference.networking.k8s.io/v1) in the cluster: install the Gateway API "
    "Inference Extension as https://gateway-api-inference-extension.sigs.k8s.io/guides says",
    Presence.REFUSED: "the operator's right to list and watch inferencepools.inference.networking.k8s.io in "
    "the namespace: grant it as the chart does",
}
_UNTIL = "Until then, no InferencePool is made or changed, and requests reach the pods by the Service."
_MAX_RELEASE = 40  # characters of a release's name that the chart inferencepool writes into others


def lack(td: api.TurboDeployment, observed: Snapshot) -> str | None:
    """Say in a sentence what is missing for the gateway that is asked for; None where nothing is."""
    if td.spec.routing != api.Routing.GATEWAY or observed.pool_kind not in _LACKS:
        return None
    return (
        f"spec.routing Gateway needs {_LACKS[observed.pool_kind]}, or write spec.routing: Service. {_UNTIL}"
    )


def children(td: api.TurboDeployment, observed: Snapshot, pods: Mapping[str, str]) -> list[dict[str, Any]]:
    """Build `NAME`, where it is wanted and can be: the InferencePool of the pods with the labels `pods`."""
    if td.spec.routing != api.Routing.GATEWAY or observed.pool_kind != Presence.PRESENT:
        return []
    picker = (td.spec.gateway or api.Gateway()).endpoint_picker
    reference = {
        "group": "",
        "kind": "Service",
        "name": picker.name or f"{td.metadata.name[:_MAX_RELEASE]}-epp",
        "port": {"number": picker.port},
        "failureMode": picker.failure_mode,
    }
    spec = {
        "selector": {"matchLabels": dict(pods)},
        "targetPorts": [{"number": PORT}],
        "endpointPickerRef": reference,
    }
    return [metadata.build_child(td, "InferencePool", td.metadata.name, api.ROLE_SERVING, {"spec": spec})]
