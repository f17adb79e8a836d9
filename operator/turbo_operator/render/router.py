"""vLLM's router in front of the pods, with exactly the rights that it needs, and the activator. Pure.

The router finds the pods by itself, and keeps each conversation on the same one, so that prefix caches and
suffix memories stay whole. Flags are those of vllm-router 0.1: https://github.com/vllm-project/router
The activator before it holds requests while there is no pod, and keeps the router's own API from everybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from turbo_operator import api
from turbo_operator.activator import report
from turbo_operator.render import metadata, pod
from turbo_operator.settings import Settings
from turbo_operator.snapshot import ChildView, Snapshot
from turbo_runtime.contract.endpoints import MAX_BODY_BYTES, PORT, PORT_NAME

SUFFIX = "router"
METRICS_PORT, METRICS_PORT_NAME = 29000, "metrics"
LOOPBACK, ROUTER_PORT = "127.0.0.1", 8001
REPLICAS = 2  # one of them may be lost
MIN_READY_SECONDS = 10  # for a router to find the pods
END_SECONDS = 10  # for the router, once the activator has ended
LEAVE_SECONDS = 10  # for which load balancers may still name a router that is told to end
# A pod that did not answer is tried again after seconds, not minutes.
RECOVERY = (
    "--health-check-interval-secs=10",
    "--health-success-threshold=1",
    "--cb-timeout-duration-secs=3",
    "--cb-success-threshold=1",
)
# A new conversation goes to the pod with the smallest number, and counts as long after its last request. By
# the router's default that is long, and a new pod gets every new one until it has as many as the others.
SESSION_EXPIRY = "VLLM_ROUTER_SLL_SESSION_EXPIRATION_IN_S"
_SESSION_SECONDS = 120
_MEMORY = "1Gi"  # its tree of prefixes grows to hundreds of MiB


def name(td: api.TurboDeployment) -> str:
    """`NAME-router`."""
    return f"{td.metadata.name}-{SUFFIX}"


def is_wanted(td: api.TurboDeployment, settings: Settings) -> bool:
    """Whether there is to be a router; not while the operator knows no image of one."""
    return td.spec.routing == api.Routing.ROUTER and settings.router_image is not None


def lack(td: api.TurboDeployment, settings: Settings) -> str | None:
    """Say in a sentence what is missing for the router that is asked for; None where nothing is."""
    if td.spec.routing != api.Routing.ROUTER or is_wanted(td, settings):
        return None
    return (
        "spec.routing Router needs the router's image: install the chart with image.router.repository, or "
        "write spec.routing: Service."
    )


def answers(td: api.TurboDeployment, children: Iterable[ChildView]) -> bool:
    """Whether a router is there to send requests to."""
    routers = (child for child in children if (child.kind, child.name) == ("Deployment", name(td)))
    return any(child.available_replicas > 0 and not child.terminating for child in routers)


def selector(td: api.TurboDeployment) -> dict[str, str]:
    """Return the labels of the router's pods."""
    return {
        api.LABEL_DEPLOYMENT: td.metadata.name,
        api.LABEL_ROLE: api.ROLE_ROUTER,
        api.LABEL_OWNER_UID: td.metadata.uid,
    }


def children(
    td: api.TurboDeployment,
    settings: Settings,
    observed: Snapshot,
    pods: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Build `NAME-router`, where it is wanted: a service account that may watch pods, and the router's pods.

    `pods` are the labels by which it finds those that serve.
    """
    # The chart's: who may only bind this one need not have the rights in it.
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": settings.router_role}
    account = {"kind": "ServiceAccount", "name": name(td), "namespace": td.metadata.namespace}
    # Nobody may change the role of a binding that is there.
    binding = f"{name(td)}-{metadata.digest(role)[:8]}"
    bodies: list[tuple[str, str, dict[str, Any]]] = []
    is_routed = is_wanted(td, settings)
    if is_routed or (settings.router_image is not None and observed.routers):  # to the end of their pods
        bodies.append(("ServiceAccount", name(td), {"automountServiceAccountToken": False}))
        bodies.append(("RoleBinding", binding, {"subjects": [account], "roleRef": role}))
    if is_routed:
        replicas = 0 if td.spec.suspend else 1 if td.spec.scaling.max_replicas == 1 else REPLICAS
        bodies.append(("Deployment", name(td), {"spec": _deployment(td, settings, pods, replicas)}))
        if replicas > 1:
            keep = {"minAvailable": 1, "selector": {"matchLabels": selector(td)}}
            budget = {"spec": {**keep, "unhealthyPodEvictionPolicy": "AlwaysAllow"}}
            bodies.append(("PodDisruptionBudget", name(td), budget))
    return [metadata.build_child(td, kind, title, api.ROLE_ROUTER, body) for kind, title, body in bodies]


def _deployment(
    td: api.TurboDeployment,
    settings: Settings,
    pods: Mapping[str, str],
    replicas: int,
) -> dict[str, Any]:
    own = {**metadata.labels(td, api.ROLE_ROUTER), **selector(td)}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector(td)},
    }
    overlay = td.spec.pod_template.spec
    secrets = [{"name": secret.name} for secret in overlay.image_pull_secrets or ()]
    spec = {
        "serviceAccountName": name(td),
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "securityContext": pod.POD_SECURITY,
        # As long as a pod may take for its last answer: it passes through here.
        "terminationGracePeriodSeconds": int(LEAVE_SECONDS + td.spec.drain.timeout.seconds + END_SECONDS),
        "topologySpreadConstraints": [spread],
        # Beside the activator, and ended after it: what is under way passes through.
        "initContainers": [{**_router(td, settings, pods), "restartPolicy": "Always"}],
        "containers": [_activator(td, settings)],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": pod.TMP_LIMIT}}],
        **({"imagePullSecrets": secrets} if secrets else {}),
    }
    return {
        "replicas": replicas,
        "selector": {"matchLabels": selector(td)},
        "template": {"metadata": {"labels": own}, "spec": spec},
        # A new one is there, and has found the pods, before an old one goes.
        "minReadySeconds": MIN_READY_SECONDS,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "revisionHistoryLimit": 0,
    }


def _activator(td: api.TurboDeployment, settings: Settings) -> dict[str, Any]:
    alive, ready = (
        {"httpGet": {"path": path, "port": report.ADMIN_PORT_NAME}, "timeoutSeconds": 5}
        for path in (report.ROUTER_PATH, report.READY_PATH)
    )
    arguments = [
        f"--router-url=http://{LOOPBACK}:{ROUTER_PORT}",
        f"--port={PORT}",
        f"--admin-port={report.ADMIN_PORT}",
        f"--max-body-bytes={MAX_BODY_BYTES}",
        f"--leave-seconds={LEAVE_SECONDS}",
        f"--drain-timeout={td.spec.drain.timeout.seconds:g}",
        *settings.activator_args,
    ]
    return {
        **_container(settings, "activator", ["turbo", "activator"], arguments),
        "ports": [
            {"name": PORT_NAME, "containerPort": PORT, "protocol": "TCP"},
            {"name": report.ADMIN_PORT_NAME, "containerPort": report.ADMIN_PORT, "protocol": "TCP"},
        ],
        # Once the router is there. Not later: without it, the activator holds requests.
        "startupProbe": {**alive, "periodSeconds": 1, "failureThreshold": 60},
        "readinessProbe": {**ready, "periodSeconds": 5, "failureThreshold": 2},
        # While it leaves, it is not ready, and not to be restarted.
        "livenessProbe": {
            "tcpSocket": {"port": report.ADMIN_PORT_NAME},
            "periodSeconds": 10,
            "failureThreshold": 3,
        },
        "resources": {"requests": {"cpu": "50m", "memory": "96Mi"}, "limits": {"memory": "512Mi"}},
    }


def _router(td: api.TurboDeployment, settings: Settings, pods: Mapping[str, str]) -> dict[str, Any]:
    arguments = [
        # Nobody but the activator: its other paths add workers, without a key.
        f"--host={LOOPBACK}",
        f"--port={ROUTER_PORT}",
        "--policy=sticky_least_loaded",  # a session, which the activator names, stays on its pod
        "--prometheus-host=0.0.0.0",
        f"--prometheus-port={METRICS_PORT}",
        "--service-discovery",
        f"--service-discovery-port={PORT}",
        f"--service-discovery-namespace={td.metadata.namespace}",
        "--selector",
        *(f"{key}={value}" for key, value in sorted(pods.items())),
        "--request-id-headers",
        "x-request-id",
        f"--max-payload-size={MAX_BODY_BYTES}",
        *RECOVERY,
        *settings.router_args,
    ]
    # By the activator, which reaches its loopback.
    alive = {"httpGet": {"path": report.ROUTER_PATH, "port": report.ADMIN_PORT}, "timeoutSeconds": 5}
    container = _container(settings, SUFFIX, ["vllm-router"], arguments)
    return {
        **container,
        "env": [*container["env"], {"name": SESSION_EXPIRY, "value": str(_SESSION_SECONDS)}],
        "ports": [{"name": METRICS_PORT_NAME, "containerPort": METRICS_PORT, "protocol": "TCP"}],
        "livenessProbe": {**alive, "initialDelaySeconds": 30, "periodSeconds": 10, "failureThreshold": 6},
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": _MEMORY}},
    }


def _container(
    settings: Settings, title: str, command: Sequence[str], arguments: Sequence[str]
) -> dict[str, Any]:
    return {
        "name": title,
        "image": settings.router_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": list(command),
        "args": list(arguments),
        "env": [{"name": "HOME", "value": pod.TMP_PATH}],
        "securityContext": pod.CONTAINER_SECURITY,
        "volumeMounts": [{"name": "tmp", "mountPath": pod.TMP_PATH}],
    }
