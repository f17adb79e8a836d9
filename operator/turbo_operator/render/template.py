"""The pod template of a variant, and the hash of what shapes it. Pure.

The hash is made of what was asked and planned, never of the rendered template: an operator that renders a
little differently, or was installed with another default image, leaves running pods alone. Their template is
frozen in a ControllerRevision and used as it is for as long as the hash stays. The runtime's image is renewed
by `spec.engine.image`, or with the next change of the plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from turbo_operator import api
from turbo_operator.budget import device_pod_cores
from turbo_operator.capacity_types import build_constraint
from turbo_operator.plan import Choice
from turbo_operator.render import draft_volume, fetch, pod, turbo, vllm
from turbo_operator.render.metadata import digest, labels
from turbo_operator.render.server import EngineServer, api_keys, capture, volumes_of
from turbo_operator.render.workload import NODES, TRIED, WORKER
from turbo_operator.settings import Settings
from turbo_operator.snapshot import DraftView, identity
from turbo_runtime.contract.documents import ModelInfo
from turbo_runtime.contract.endpoints import HEALTH_PATH, PORT, PORT_NAME

# A later operator that hashes other things takes the next prefix, and keeps computing this one for the
# variants that bear it.
HASH_VERSION = "v2"
HASH_DIGITS = 8
CEILING_OF_V2 = 8  # drafted tokens that `turbo serve` took unless told; its hashes stay what they were

CONTAINER = "runtime"
MIB = 1 << 20
STARTUP_PERIOD_SECONDS = 2
STARTUP_SECONDS = 3600  # downloads and loads of large models; a crash ends it sooner
HUNG_GRACE_SECONDS = 10
DOWNLOAD_RESOURCES = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}}


def plan_hash(
    td: api.TurboDeployment,
    choice: Choice,
    facts: ModelInfo,
    draft: DraftView | None = None,
    *,
    canary: bool = False,
) -> str:
    """Hash all that shapes a serving pod: never of replicas, prices, predictions or rejects. Which draft of a
    claim it is counts on vLLM, where the pod that one is tried on is of the plan to come, and else only for
    pods that one is tried on.
    """
    claim = draft_volume.claim(td, draft, choice)
    accelerator = choice.accelerator
    material: dict[str, Any] = {
        "argv": _arguments(td, choice, facts, claim),
        "uri": td.spec.model.uri,
        "token": td.spec.model.token_secret_ref.dump() if td.spec.model.token_secret_ref else None,
        "image": td.spec.engine.image,
        "accelerator": [
            accelerator.name,
            accelerator.resource_name,
            _number(accelerator.quantity * _per_pod(choice)),
            dict(accelerator.node_selector),
            [dict(toleration) for toleration in accelerator.tolerations],
        ],
        "memory": choice.host_memory_bytes,
        "overlay": {**td.spec.pod_template.metadata.dump(), **td.spec.pod_template.spec.dump()},
    }
    # What is not asked for is left out, so that what runs keeps its name.
    if choice.engine != api.EngineName.TURBO:
        material["engine"] = choice.engine
    if choice.nodes > 1:
        material["nodes"] = choice.nodes
    if choice.capacity_type != api.CapacityType.ON_DEMAND:
        material["capacityType"] = choice.capacity_type
    if selectors := build_constraint(accelerator, choice.capacity_type).selectors:
        material["capacitySelectors"] = {kind: dict(selector) for kind, selector in selectors.items()}
    if td.spec.cache is not None:
        material["cache"] = td.spec.cache.dump()
        if td.spec.model.s3 and pod.fetched_claim(td) is None:  # else serving pods read no bucket
            material["s3"] = td.spec.model.s3.dump()
    if keys := api_keys(td):
        material["apiKeys"] = keys.dump()
    if kept := capture(td):
        material["capture"] = kept.persistent_volume_claim.dump()  # the rest reaches pods as they run
    if choice.engine == api.EngineName.TURBO and (model := pod.draft_model(td, choice)):
        material["draftModel"] = model.uri
    if claim:
        material["drafts"] = claim
    if trained := draft_volume.loaded_by_vllm(td, draft, choice):
        material["draft"] = identity(trained)[1:]  # what is loaded, under whatever name
    elif canary and draft:
        material["canary"] = identity(draft)
    return HASH_VERSION + digest(material)[:HASH_DIGITS]


def _arguments(td: api.TurboDeployment, choice: Choice, facts: ModelInfo, claim: str | None) -> list[str]:
    """Return what tells the engine's servers of two plans apart."""
    if choice.engine == api.EngineName.VLLM:
        return vllm.identity(td, choice, facts)
    config = turbo.runtime_config(td, choice, facts, resources(td, choice), claim)
    return config.to_argv(max_draft_tokens=CEILING_OF_V2)


def pod_template(
    td: api.TurboDeployment,
    choice: Choice,
    facts: ModelInfo,
    variant: str,
    settings: Settings,
    draft: DraftView | None = None,
    *,
    canary: bool = False,
) -> dict[str, Any]:
    """Build the templates of `variant`, a plan hash; of a `canary`, that the draft is tried on.

    It is the template of the pods that answer. Where a replica is on several nodes, `worker` in it is that
    of the others, and `nodes` how many there are. What vLLM tries a draft on is told from the plan that a
    promotion leads to by nothing but `tried`.
    """
    claim = draft_volume.claim(td, draft, choice)
    amounts = resources(td, choice)
    if choice.engine == api.EngineName.VLLM:
        engine = vllm.server(td, choice, facts, amounts, settings, draft)
    else:
        engine = turbo.server(td, choice, facts, amounts, settings, claim, canary=canary)
    server = (engine.image, CONTAINER, engine.command, engine.arguments, amounts, engine.draft)
    container = pod.build_container(td, settings, *server) | {
        "ports": [{"name": PORT_NAME, "containerPort": PORT, "protocol": "TCP"}],
        # Readiness is the model being loaded; the server process answers for a busy engine, so that slowness
        # is no death below spec.engine.stepTimeout.
        "startupProbe": _probe(
            engine.ready_path, STARTUP_PERIOD_SECONDS, STARTUP_SECONDS // STARTUP_PERIOD_SECONDS
        ),
        "readinessProbe": _probe(engine.ready_path, 5, 2),
        # A process that hangs does not end by itself: there is nothing to drain.
        "livenessProbe": _probe(HEALTH_PATH, 10, 6) | {"terminationGracePeriodSeconds": HUNG_GRACE_SECONDS},
        **({"lifecycle": engine.lifecycle} if engine.lifecycle else {}),
    }
    container["env"] = pod.merge_environment(engine.environment, container["env"])
    volumes = [*volumes_of(td), *draft_volume.volumes(td, claim, choice.engine, canary), *engine.volumes]
    downloads = [
        pod.build_container(
            td, settings, engine.image, name, command[:1], command[1:], DOWNLOAD_RESOURCES, asks_hub=True
        )
        for name, command in engine.downloads.items()
    ]
    spec = pod.pod_spec(td, container, choice, volumes, engine.draft, downloads)
    if before := fetch.init_containers(td, facts, settings, spec, choice.nodes):
        spec["initContainers"] = [*before, *spec.get("initContainers", ())]
    if capture(td):
        spec["securityContext"] |= pod.OWN_GROUP
    spec["terminationGracePeriodSeconds"] = math.ceil(engine.grace_seconds)
    own = {
        **labels(td, api.ROLE_SERVING),
        api.LABEL_PLAN_HASH: variant,
        api.LABEL_OWNER_UID: td.metadata.uid,
        api.LABEL_ENGINE: choice.engine,
        **pod.placement_labels(choice),
    }
    if draft and (canary or draft_volume.loaded_by_vllm(td, draft, choice)):
        own[api.LABEL_DRAFT_VERSION] = api.label_value(draft.version)
    if choice.nodes > 1:
        own[api.LABEL_NODES] = str(choice.nodes)
    template: dict[str, Any] = {"metadata": pod.pod_metadata(td, own), "spec": spec}
    if canary and (trained := draft_volume.loaded_by_vllm(td, draft, choice)):
        template[TRIED] = list(identity(trained)[1:])
    return template if choice.nodes == 1 else {**template, **_workers(choice, engine, template)}


def _workers(choice: Choice, engine: EngineServer, template: Mapping[str, Any]) -> dict[str, Any]:
    """Build what is frozen beside a leader's template: that of its workers, which listen to nobody."""
    (leader,) = template["spec"]["containers"]
    probes = ("ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle")
    container = {key: value for key, value in leader.items() if key not in probes}
    container |= {"args": list(engine.worker_arguments), "lifecycle": dict(engine.worker_lifecycle)}
    meta = template["metadata"]
    roles = {api.LABEL_ROLE: api.ROLE_WORKER, api.LABEL_COMPONENT: api.ROLE_WORKER}
    return {
        WORKER: {
            "metadata": {**meta, "labels": {**meta["labels"], **roles}},
            "spec": {**template["spec"], "containers": [container]},
        },
        NODES: choice.nodes,
    }


def resources(td: api.TurboDeployment, choice: Choice) -> dict[str, dict[str, str]]:
    """Return the container's requests and limits: the accelerator's, the overlay's amounts over them."""
    accelerator = choice.accelerator
    amount = _number(accelerator.quantity * _per_pod(choice))
    memory = f"{-(-choice.host_memory_bytes // MIB)}Mi"
    limits = {"memory": memory, accelerator.resource_name: amount}
    cores = device_pod_cores(choice.engine, choice.tensor, choice.draft_cores)
    requests = {"cpu": str(cores), **limits}  # of cores the accelerator's amount
    overlay = td.spec.pod_template.spec.resources
    if overlay:
        requests |= overlay.requests or {}
        limits |= overlay.limits or {}
    return {"requests": requests, "limits": limits}


def _per_pod(choice: Choice) -> int:
    """Return the accelerators of one pod; a replica has one on each of its nodes."""
    return choice.accelerators_per_replica // choice.nodes


def _number(amount: Decimal) -> str:
    """Write a quantity in its shortest form: whole, or in thousandths."""
    return str(int(amount)) if amount == int(amount) else f"{math.ceil(amount * 1000)}m"


def _probe(path: str, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": PORT_NAME},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
