"""What pods of a variant come from: a Deployment, or for a replica on several nodes a LeaderWorkerSet. Pure.

Templates are frozen in a ControllerRevision: the pod template, with that of the workers and the number of
nodes beside it where a replica is on several, and on vLLM the draft that it was made to try.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turbo_operator import api
from turbo_operator.render import metadata
from turbo_operator.rollout import Variant

PROGRESS_SECONDS = 3600  # as long as a start may take
KEPT_REPLICA_SETS = 0  # a variant's template never changes, so there is nothing to go back to
WORKER, NODES = "worker", "nodes"  # of frozen templates of a replica on several nodes
TRIED = "tried"  # of those made for a canary of vLLM: what its draft is, its name apart

Frozen = Mapping[str, Any]
Manifest = Mapping[str, Any]


def variant_name(td: api.TurboDeployment, plan_hash: str) -> str:
    """Return the name of a variant's workload and ControllerRevision."""
    return f"{td.metadata.name}-{plan_hash}"


def workload_kind(frozen: Frozen) -> str:
    """Return the kind of object that frozen templates are of."""
    return "LeaderWorkerSet" if WORKER in frozen else "Deployment"


def workload(td: api.TurboDeployment, variant: Variant, frozen: Frozen) -> dict[str, Any]:
    """Build `NAME-HASH`: the pods of one plan."""
    build = _leader_worker_set if WORKER in frozen else _deployment
    own, name = {api.LABEL_PLAN_HASH: variant.plan_hash}, variant_name(td, variant.plan_hash)
    spec = build(td, variant, frozen)
    return metadata.build_child(td, workload_kind(frozen), name, api.ROLE_SERVING, {"spec": spec}, own)


def _deployment(td: api.TurboDeployment, variant: Variant, frozen: Frozen) -> dict[str, Any]:
    own = {api.LABEL_PLAN_HASH: variant.plan_hash}
    return {
        "replicas": variant.replicas,
        "selector": {"matchLabels": {**metadata.serving_selector(td), **own}},
        "template": {part: value for part, value in frozen.items() if part != TRIED},
        "minReadySeconds": td.spec.rollout.min_ready_seconds,
        "progressDeadlineSeconds": PROGRESS_SECONDS + td.spec.rollout.min_ready_seconds,
        "revisionHistoryLimit": KEPT_REPLICA_SETS,
    }


def _leader_worker_set(_: api.TurboDeployment, variant: Variant, frozen: Frozen) -> dict[str, Any]:
    """A lost pod takes its whole group with it: ranks of a collective cannot be replaced one by one."""
    return {
        "replicas": variant.replicas,
        "startupPolicy": "LeaderCreated",
        "leaderWorkerTemplate": {
            "size": frozen[NODES],
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": {part: frozen[part] for part in ("metadata", "spec")},
            "workerTemplate": frozen[WORKER],
        },
    }


def frozen_templates(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the templates of a workload as the API server holds it, as they are frozen."""
    group = body["spec"].get("leaderWorkerTemplate")
    if group is None:
        return dict(body["spec"]["template"])
    return {**group["leaderTemplate"], WORKER: group["workerTemplate"], NODES: group["size"]}


def number_of_nodes(manifest: Manifest) -> int:
    """Return on how many nodes one replica of a workload is."""
    group: Mapping[str, Any] = manifest["spec"].get("leaderWorkerTemplate") or {}
    return int(group.get("size", 1))


def pod_template(manifest: Manifest) -> Mapping[str, Any] | None:
    """Return the template of the pods that answer; None of a manifest that has none."""
    spec = manifest.get("spec") or {}
    template: Mapping[str, Any] | None = spec.get("template")
    return (spec.get("leaderWorkerTemplate") or {}).get("leaderTemplate") or template
