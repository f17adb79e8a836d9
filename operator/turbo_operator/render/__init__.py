"""From an object, its plan and the settings to every child that shall exist. Pure: no client, no clock.

The same input gives the same manifests, byte for byte, each sealed with the hash of itself. What is not among
them shall not exist.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from turbo_operator import api
from turbo_operator.plan import Choice
from turbo_operator.render import draft_volume, gateway, metadata, pod, router, server, vllm
from turbo_operator.render import template as pod_templates
from turbo_operator.render.pod import source_hash as source_hash
from turbo_operator.render.template import plan_hash as plan_hash
from turbo_operator.render.workload import TRIED, number_of_nodes, pod_template, workload
from turbo_operator.render.workload import frozen_templates as frozen_templates
from turbo_operator.render.workload import variant_name as variant_name
from turbo_operator.render.workload import workload_kind as workload_kind
from turbo_operator.resources import WORKLOADS
from turbo_operator.rollout import Variant
from turbo_operator.settings import Settings
from turbo_operator.snapshot import DraftView, Snapshot, identity
from turbo_runtime.contract.documents import ModelInfo
from turbo_runtime.contract.endpoints import PORT_NAME

SERVICE_PORT = 80

INSPECT_CONTAINER = "inspect"
FACTS_KEY = "facts.json"  # ModelInfo as JSON
SOURCE_KEY = "source"  # the source hash that they are good for
SOURCES_KEY = "sources"  # with adapters: source hashes of the model and of each, as JSON
SEAL_KEY = "seal"  # hash of all of it: what somebody edited is no answer of the Job's

RETRIES = 6  # pauses of 10 s, doubled each time: about ten minutes for a claim or a hub to come back


def children(
    td: api.TurboDeployment,
    observed: Snapshot,
    choice: Choice | None,
    variants: Sequence[Variant],
    settings: Settings,
    trying: tuple[DraftView, Choice] | None = None,
    min_available: int = 0,
    fetch_job: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], ...]:
    """Build all children wanted now, in the order in which they are to be applied.

    `choice` is the feasible plan's, and None while there is none; `variants` come from the rollout. A
    ControllerRevision stands before its workload: whatever is interrupted between the two goes on from the
    frozen template. The inspect Job exists only until its answer is kept in the ConfigMap. `trying` is a
    draft that a variant of its own is for, and what that is made of. No drain may leave less than
    `min_available` pods that answer.
    """
    model = observed.model
    drafts = [(observed.draft, choice, False), *([(*trying, True)] if trying is not None else [])]
    selector = metadata.traffic_selector(td, observed.children)
    is_routed = router.is_wanted(td, settings)
    through = router.selector(td) if is_routed and router.answers(td, observed.children) else selector
    wanted = [service(td, through), *router.children(td, settings, observed, selector)]
    wanted += inspection(td, observed, settings)
    wanted += [dict(fetch_job)] if fetch_job is not None else []
    wanted += [*server.capture_configmaps(td), *vllm.configmaps(td, choice)]
    if model is not None:
        for draft, _, canary in drafts:
            wanted += draft_volume.configmaps(td, observed, draft, canary)
    frozen = _frozen_templates(observed)
    templates = [frozen[variant.plan_hash] for variant in variants if variant.plan_hash in frozen]
    wanted += _mounted_configmaps(td, observed, wanted, templates)
    for variant in variants:
        template: Mapping[str, Any] | None = frozen.get(variant.plan_hash)
        for draft, each, canary in drafts:  # the plan that `choice` leads to, or the one of the canary
            if template is not None or each is None or model is None:
                break
            if variant.plan_hash == plan_hash(td, each, model, draft, canary=canary):
                template = pod_templates.pod_template(
                    td, each, model, variant.plan_hash, settings, draft, canary=canary
                )
        if template is not None:
            wanted += [revision(td, variant.plan_hash, template), workload(td, variant, template)]
        else:  # somebody deleted its revision: it can only be scaled
            meta = {"name": variant_name(td, variant.plan_hash), "namespace": td.metadata.namespace}
            own = (child.kind for child in observed.children if child.plan_hash == variant.plan_hash)
            kind = next((kind for kind in own if kind in WORKLOADS), "Deployment")
            wanted.append({"kind": kind, "metadata": meta, "spec": {"replicas": variant.replicas}})
    nodes = min((number_of_nodes(item) for item in wanted if item["kind"] in WORKLOADS), default=1)
    pools = gateway.children(td, observed, selector)
    # Before the first variant there is no pod that a drain could evict.
    has_budget = bool(variants) or any(child.kind == "PodDisruptionBudget" for child in observed.children)
    budget = [pdb(td, selector, min_available, nodes)] if has_budget else []
    return (wanted[0], *budget, *wanted[1:], *pools)


def inspection(td: api.TurboDeployment, observed: Snapshot, settings: Settings) -> list[dict[str, Any]]:
    """Build what finds out about the model, or keeps what was found."""
    if observed.model is not None:
        return [model_configmap(td, observed.model)]
    place = ("ConfigMap", model_configmap_name(td))
    data = next((it.data for it in observed.children if (it.kind, it.name) == place), None) or {}
    commits = inspected_commits(td, data)
    wanted = [inspect_job(td, settings, commits)] if observed.inspected_by is None else []
    if commits:  # which it has kept, until there are new ones
        wanted.append(metadata.configmap(td, place[1], data, api.ROLE_INSPECT))
    return wanted


def _frozen_templates(observed: Snapshot) -> dict[str, Mapping[str, Any]]:
    """Return templates by plan hash, as they were rendered when their variants were made."""
    return {
        child.plan_hash: child.data
        for child in observed.children
        if child.kind == "ControllerRevision" and child.plan_hash and child.data is not None
    }


def mounted_configmaps(manifests: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the names of the ConfigMaps without which pods of these manifests do not start."""
    templates = [pod_template(item) for item in manifests if item["kind"] in WORKLOADS]
    return frozenset(chain.from_iterable(_mounted_by(template) for template in templates if template))


def _mounted_by(template: Mapping[str, Any]) -> list[str]:
    volumes = template["spec"].get("volumes", ())
    return [volume["configMap"]["name"] for volume in volumes if "configMap" in volume]


def _mounted_configmaps(
    td: api.TurboDeployment,
    observed: Snapshot,
    wanted: Sequence[Mapping[str, Any]],
    templates: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Build unwanted ConfigMaps that pods of variants in force mount: else none of them could start."""
    names = set(chain.from_iterable(map(_mounted_by, templates)))
    names -= {manifest["metadata"]["name"] for manifest in wanted if manifest["kind"] == "ConfigMap"}
    configmaps = []
    for child in observed.children:
        if child.kind == "ConfigMap" and child.name in names:
            data = child.data or {}
            if child.name == server.capture_configmap_name(td):
                data = server.stopped_capture(data)
            elif child.name == draft_volume.configmap_name(td, canary=True):
                data = draft_volume.after_canary(td, observed, templates)
            configmaps.append(metadata.configmap(td, child.name, data))
    return configmaps


def canary_hashes(td: api.TurboDeployment, observed: Snapshot) -> frozenset[str]:
    """Return the plan hashes of the variants that a draft is or was tried on, and that serve no plan."""
    name, serving = draft_volume.configmap_name(td, canary=True), td.status.serving_plan
    in_use = [list(identity(draft)[1:]) for draft in (observed.draft, td.status.draft) if draft is not None]
    recorded = None if serving is None else serving.hash
    return frozenset(
        plan_hash
        for plan_hash, template in _frozen_templates(observed).items()
        if name in _mounted_by(template)
        or (TRIED in template and template[TRIED] not in in_use and plan_hash != recorded)
    )


def canary_names(td: api.TurboDeployment, variant: str) -> frozenset[str]:
    """Return the names of the children that exist only for the variant that a draft is tried on."""
    return frozenset({variant_name(td, variant), draft_volume.configmap_name(td, canary=True)})


def service(td: api.TurboDeployment, selector: Mapping[str, str]) -> dict[str, Any]:
    """Build `NAME`: port 80 of it is the OpenAI API."""
    port = {"name": PORT_NAME, "port": SERVICE_PORT, "targetPort": PORT_NAME, "protocol": "TCP"}
    spec = {"selector": dict(selector), "ports": [port]}
    return metadata.build_child(td, "Service", td.metadata.name, api.ROLE_SERVING, {"spec": spec})


def url(td: api.TurboDeployment) -> str:
    """Return the base URL of the OpenAI API, as pods of the cluster reach it; 80 is the port of http."""
    return f"http://{td.metadata.name}.{td.metadata.namespace}.svc/v1"


def pdb(
    td: api.TurboDeployment, selector: Mapping[str, str], min_available: int, nodes: int = 1
) -> dict[str, Any]:
    """Build `NAME`: for a node's sake no more pods may leave; one that does not serve always may.

    With any pod of a replica on several `nodes` the whole of it leaves: then one pod of all may.

    A maxUnavailable would be of what Deployments ask for at the moment, which a rollout lowers.
    """
    selects: dict[str, Any] = {"matchLabels": dict(selector)}
    if nodes > 1:
        roles = {"key": api.LABEL_ROLE, "operator": "In", "values": [api.ROLE_SERVING, api.ROLE_WORKER]}
        labels = {name: value for name, value in selector.items() if name != api.LABEL_ROLE}
        selects = {"matchLabels": labels, "matchExpressions": [roles]}
        min_available = (min_available + 1) * nodes - 1 if min_available else 0
    policy = {"selector": selects, "unhealthyPodEvictionPolicy": "AlwaysAllow"}
    body = {"spec": {"minAvailable": min_available, **policy}}
    return metadata.build_child(td, "PodDisruptionBudget", td.metadata.name, api.ROLE_SERVING, body)


def revision(td: api.TurboDeployment, plan_hash: str, template: Mapping[str, Any]) -> dict[str, Any]:
    """Build `NAME-HASH`: the variant's templates, as they were rendered when the variant was made."""
    body, own = {"revision": 1, "data": template}, {api.LABEL_PLAN_HASH: plan_hash}
    return metadata.build_child(
        td, "ControllerRevision", variant_name(td, plan_hash), api.ROLE_SERVING, body, own
    )


def job_name(td: api.TurboDeployment) -> str:
    """`NAME-inspect-HASH`, by the model's source: another source is another Job."""
    return f"{td.metadata.name}-inspect-{source_hash(td)}"


def model_configmap_name(td: api.TurboDeployment) -> str:
    """`NAME-model`."""
    return f"{td.metadata.name}-model"


def inspect_job(
    td: api.TurboDeployment, settings: Settings, commits: Mapping[str, str] = {}
) -> dict[str, Any]:
    """Build a Job of one pod that runs `turbo inspect` and leaves `ModelInfo` as its termination message.

    What has a commit already, by `inspected_commits`, is inspected at that.
    """
    revision = commits.get("", td.spec.model.revision)
    adapters = [
        f"--adapter={it.name}={pod.adapter_argument(it, commits.get(it.name, it.revision))}"
        for it in pod.sorted_adapters(td)
    ]
    model = pod.model_argument(td.spec.model)
    args = [model, *([f"--revision={revision}"] if revision else []), *adapters]
    args += [f"--termination-message={pod.TERMINATION_LOG}"]
    # Configuration and headers only are read; what weighs is the interpreter.
    resources = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}
    image, command = pod.runtime_image(td, settings), ["turbo", "inspect"]
    container = pod.build_container(
        td, settings, image, INSPECT_CONTAINER, command, args, resources, asks_hub=True
    )
    container = pod.reading_bucket(td, container)
    spec = {
        "backoffLimit": RETRIES,
        "podFailurePolicy": {"rules": [pod.failing_at_once(INSPECT_CONTAINER)]},
        "template": {
            "metadata": pod.pod_metadata(td, metadata.labels(td, api.ROLE_INSPECT)),
            "spec": {**pod.pod_spec(td, container, access="Read"), "restartPolicy": "Never"},
        },
    }
    return metadata.build_child(td, "Job", job_name(td), api.ROLE_INSPECT, {"spec": spec})


def facts_data(td: api.TurboDeployment, facts: ModelInfo) -> dict[str, str]:
    """Return what the ConfigMap holds."""
    data = {FACTS_KEY: facts.to_json(), SOURCE_KEY: source_hash(td)}
    if td.spec.adapters:
        data[SOURCES_KEY] = json.dumps(pod.sources(td), sort_keys=True)
    return {**data, SEAL_KEY: _seal(data)}


def _seal(data: Mapping[str, str]) -> str:
    return metadata.digest({name: text for name, text in data.items() if name != SEAL_KEY})[:16]


def inspected_commits(td: api.TurboDeployment, data: Mapping[str, str]) -> dict[str, str]:
    """Return the commits that the ConfigMap of another source has of what comes from where it did: a model
    whose adapters change stays what it is, though its branch has moved. By an adapter's name, the model's
    is empty.
    """
    if data.get(SEAL_KEY) != _seal(data):
        return {}
    try:
        facts = ModelInfo.from_json(data.get(FACTS_KEY, ""))
        known = json.loads(data[SOURCES_KEY]) if SOURCES_KEY in data else {"": data.get(SOURCE_KEY)}
    except ValueError:  # of another version
        return {}
    commits = {"": facts.revision, **{adapter.name: adapter.revision for adapter in facts.adapters}}
    same = [name for name, source in pod.sources(td).items() if known.get(name) == source]
    return {name: commit for name in same if (commit := commits.get(name)) is not None}


def model_configmap(td: api.TurboDeployment, facts: ModelInfo) -> dict[str, Any]:
    """Build `NAME-model`: what the inspect Job found, so that its answer outlives its pod."""
    return metadata.configmap(td, model_configmap_name(td), facts_data(td, facts), api.ROLE_INSPECT)
