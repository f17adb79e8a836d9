"""What serving and inspecting pods share: the same locks, the same overlay. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from turbo_operator.api import Template, TurboDeployment
from turbo_operator.capacity_types import build_constraint
from turbo_operator.plan import Choice
from turbo_operator.render import source

USER_ID = 65532  # of the runtime image; any other would do as well

CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def variables(td: TurboDeployment) -> list[dict[str, Any]]:
    """The overlay's environment as the API server keeps it: an empty value is no value there."""
    overlay = td.spec.template or Template()
    return [
        {key: value for key, value in variable.dump().items() if value != ""}
        for variable in overlay.env or ()
    ]


def pod_spec_for(td: TurboDeployment, container: dict[str, Any], choice: Choice) -> dict[str, Any]:
    """A pod that goes only where the accelerator and the capacity type of the choice are."""
    accelerator = choice.accelerator
    constraint = build_constraint(accelerator, choice.capacity_type)
    tolerations = [dict(each) for each in (*accelerator.tolerations, *constraint.tolerations)]
    spec = pod_spec(td, container, tolerations, dict(accelerator.node_selector))
    return {**spec, "affinity": constraint.affinity}


def pod_spec(
    td: TurboDeployment,
    container: dict[str, Any],
    tolerations: Sequence[dict[str, Any]],
    selector: dict[str, str],
) -> dict[str, Any]:
    """A pod around one container that reads the model; the overlay adds `tolerations` and to `selector`.

    No token of the Kubernetes API is mounted, and Services are not announced in the environment.
    """
    overlay = td.spec.template or Template()
    nodes = {**selector, **(overlay.node_selector or {})}
    tolerated = [*tolerations, *(each.dump() for each in overlay.tolerations or ())]
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                **container,
                "securityContext": CONTAINER_SECURITY,
                "volumeMounts": source.mounts(td),
                "terminationMessagePolicy": "FallbackToLogsOnError",
            }
        ],
        "volumes": source.volumes(td),
    }
    if nodes:
        spec["nodeSelector"] = nodes
    if tolerated:
        spec["tolerations"] = tolerated
    if overlay.service_account_name:
        spec["serviceAccountName"] = overlay.service_account_name
    if overlay.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": each.name} for each in overlay.image_pull_secrets]
    if overlay.priority_class_name:
        spec["priorityClassName"] = overlay.priority_class_name
    return spec
