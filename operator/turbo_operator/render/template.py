"""The pod template of a variant, and the hash of what shapes it. Pure.

The hash is made of what was asked and planned, never of the rendered template: an operator that renders a
little differently, or was installed with another default image, leaves running pods alone. Their template is
frozen in a ControllerRevision and used as it is for as long as the hash stays. The runtime's image is renewed
by `spec.engine.image`, or with the next change of the plan.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from turbo_operator import api
from turbo_operator.budget import DEVICE_POD_CORES
from turbo_operator.capacity_types import build_constraint
from turbo_operator.plan import Choice
from turbo_operator.planner import OFF
from turbo_operator.planner.performance.memory import GIB, on_cpu
from turbo_operator.render import draft_volume, pod
from turbo_operator.render.metadata import configmap, digest, labels
from turbo_operator.settings import Settings
from turbo_operator.snapshot import DraftView, identity
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.contract.documents import ModelInfo
from turbo_runtime.contract.endpoints import HEALTH_PATH, PORT, PORT_NAME, READY_PATH

# A later operator that hashes other things takes the next prefix, and keeps computing this one for the
# variants that bear it.
HASH_VERSION = "v2"
HASH_DIGITS = 8

KEYS_FOLDER = "/etc/turbo"
KEYS_FILE = "api-keys"  # whatever the Secret calls it: a path of one's own needs no care about names
CAPTURE_FOLDER, CAPTURE_FILE = "/etc/turbo-capture", "capture.json"
CAPTURE_CLAIM_PATH = "/capture"
MIB = 1 << 20
GRACE_SLACK_SECONDS = 10  # the engine's last step and the processes' ends
CANARY_AUDIT_FRACTION = 0.1  # of its answers: the default finds too little in minutes
STARTUP_PERIOD_SECONDS = 2
STARTUP_SECONDS = 3600  # downloads and loads of large models; a crash ends it sooner
HUNG_GRACE_SECONDS = 10


def plan_hash(
    td: api.TurboDeployment,
    choice: Choice,
    facts: ModelInfo,
    draft: DraftView | None = None,
    *,
    canary: bool = False,
) -> str:
    """Hash all that shapes a serving pod: never of replicas, prices, predictions or rejects, nor of which
    draft of a claim it is, but for pods that one is tried on.
    """
    claim = draft_volume.claim(td, draft, choice)
    accelerator = choice.accelerator
    material: dict[str, Any] = {
        "argv": runtime_config(td, choice, facts, claim).to_argv(),
        "uri": td.spec.model.uri,
        "token": td.spec.model.token_secret_ref.dump() if td.spec.model.token_secret_ref else None,
        "image": td.spec.engine.image,
        "accelerator": [
            accelerator.name,
            accelerator.resource_name,
            _number(accelerator.quantity * choice.accelerators_per_replica),
            dict(accelerator.node_selector),
            [dict(toleration) for toleration in accelerator.tolerations],
        ],
        "memory": choice.host_memory_bytes,
        "overlay": {**td.spec.pod_template.metadata.dump(), **td.spec.pod_template.spec.dump()},
    }
    # What is not asked for is left out, so that what runs keeps its name.
    if choice.capacity_type != api.CapacityType.ON_DEMAND:
        material["capacityType"] = choice.capacity_type
    if selectors := build_constraint(accelerator, choice.capacity_type).selectors:
        material["capacitySelectors"] = {kind: dict(selector) for kind, selector in selectors.items()}
    if keys := api_keys(td):
        material["apiKeys"] = keys.dump()
    if kept := capture(td):
        material["capture"] = kept.persistent_volume_claim.dump()  # the rest reaches pods as they run
    if claim:
        material["drafts"] = claim
    if canary and draft:
        material["canary"] = identity(draft)
    return HASH_VERSION + digest(material)[:HASH_DIGITS]


def runtime_config(
    td: api.TurboDeployment, choice: Choice, facts: ModelInfo, claim: str | None = None
) -> RuntimeConfig:
    """Return what `turbo serve` gets: one commit, arithmetic and threads for all, hence the same bytes."""
    cpu = on_cpu(choice.accelerator)
    timeout = td.spec.engine.step_timeout
    config = RuntimeConfig(
        model=pod.model_argument(td),
        revision=(facts.revision or td.spec.model.revision) if td.spec.model.on_hub else None,
        served_model_name=td.served_name,
        device="cpu" if cpu else "cuda",
        dtype=choice.dtype,
        # All that the container may use, since a process cannot see its quota.
        threads=max(1, int(api.quantity(resources(td, choice)["limits"]["cpu"]))) if cpu else None,
        max_model_len=choice.max_model_len,
        kv_cache_gib=choice.kv_cache_bytes / GIB,
        speculation="off" if choice.method == OFF else "suffix",
        draft_config=f"{draft_volume.FOLDER}/{draft_volume.FILE}" if claim else None,
        max_draft_tokens=choice.max_draft_tokens,
        drain_timeout_seconds=td.spec.drain.timeout.seconds,
        api_key_file=f"{KEYS_FOLDER}/{KEYS_FILE}" if api_keys(td) else None,
        capture_config=f"{CAPTURE_FOLDER}/{CAPTURE_FILE}" if capture(td) else None,
    )
    return config if timeout is None else dataclasses.replace(config, step_timeout_seconds=timeout.seconds)


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
    """Build the pod template of `variant`, a plan hash; of a `canary`, that the draft is tried on."""
    claim = draft_volume.claim(td, draft, choice)
    config = runtime_config(td, choice, facts, claim)
    if canary:
        config = dataclasses.replace(config, audit_fraction=CANARY_AUDIT_FRACTION)
    command, amounts = ["turbo", "serve"], resources(td, choice)
    container = pod.build_container(td, settings, "runtime", command, config.to_argv(), amounts) | {
        "ports": [{"name": PORT_NAME, "containerPort": PORT, "protocol": "TCP"}],
        # Readiness is the model being loaded; the server process answers for a busy engine, so that slowness
        # is no death below spec.engine.stepTimeout.
        "startupProbe": _probe(READY_PATH, STARTUP_PERIOD_SECONDS, STARTUP_SECONDS // STARTUP_PERIOD_SECONDS),
        "readinessProbe": _probe(READY_PATH, 5, 2),
        # A process that hangs does not end by itself: there is nothing to drain.
        "livenessProbe": _probe(HEALTH_PATH, 10, 6) | {"terminationGracePeriodSeconds": HUNG_GRACE_SECONDS},
    }
    volumes = [*_server_volumes(td), *draft_volume.volumes(td, claim, canary)]
    spec = pod.pod_spec(td, container, choice, volumes)
    if capture(td):
        spec["securityContext"] |= pod.OWN_GROUP
    grace = config.drain_timeout_seconds + config.shutdown_delay_seconds + GRACE_SLACK_SECONDS
    spec["terminationGracePeriodSeconds"] = math.ceil(grace)
    own = {
        **labels(td, api.ROLE_SERVING),
        api.LABEL_PLAN_HASH: variant,
        api.LABEL_OWNER_UID: td.metadata.uid,
        **pod.placement_labels(choice),
    }
    if canary and draft:
        own[api.LABEL_DRAFT_VERSION] = api.label_value(draft.version)
    return {"metadata": pod.pod_metadata(td, own), "spec": spec}


def resources(td: api.TurboDeployment, choice: Choice) -> dict[str, dict[str, str]]:
    """Return the container's requests and limits: the accelerator's, the overlay's amounts over them."""
    accelerator = choice.accelerator
    amount = _number(accelerator.quantity * choice.accelerators_per_replica)
    memory = f"{-(-choice.host_memory_bytes // MIB)}Mi"
    limits = {"memory": memory, accelerator.resource_name: amount}
    requests = {"cpu": DEVICE_POD_CORES, **limits}  # of cores the accelerator's amount
    overlay = td.spec.pod_template.spec.resources
    if overlay:
        requests |= overlay.requests or {}
        limits |= overlay.limits or {}
    return {"requests": requests, "limits": limits}


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


def api_keys(td: api.TurboDeployment) -> api.ApiKeysSecretRef | None:
    """Return where the API keys are; None where none are required."""
    return td.spec.server.api_keys_secret_ref if td.spec.server else None


def capture(td: api.TurboDeployment) -> api.Capture | None:
    """Return how prompts are kept; None where they are not."""
    return td.spec.capture if td.spec.capture and not td.spec.capture.suspend else None


def capture_configmap_name(td: api.TurboDeployment) -> str:
    """`NAME-capture`."""
    return f"{td.metadata.name}-capture"


def capture_configmaps(td: api.TurboDeployment) -> list[dict[str, Any]]:
    """Build the settings of the capture; none where nothing is to be kept."""
    kept = capture(td)
    if kept is None:
        return []
    settings = {
        "folder": f"{CAPTURE_CLAIM_PATH}/{td.metadata.name}",
        "sampleFraction": float(kept.sample_fraction),
        "maxMib": max(1, int(api.quantity(kept.max_size) // MIB)),
        "maxAgeHours": kept.max_age.seconds / 3600,
        "redact": list(kept.redact or ()),
    }
    return [configmap(td, capture_configmap_name(td), _capture_file(settings))]


def stopped_capture(data: Mapping[str, str]) -> dict[str, str]:
    """Return the same settings, by which nothing more is kept: of pods that go, while they are there."""
    try:
        settings = json.loads(data.get(CAPTURE_FILE, "{}"))
    except ValueError:  # edited by hand: the runtime holds to what it read before
        return dict(data)
    return _capture_file({**settings, "sampleFraction": 0.0})


def _capture_file(settings: Mapping[str, Any]) -> dict[str, str]:
    return {CAPTURE_FILE: json.dumps(settings, indent=2, sort_keys=True) + "\n"}


def _server_volumes(td: api.TurboDeployment) -> list[pod.MountedVolume]:
    """Build the volumes of a serving pod."""
    volumes = []
    if keys := api_keys(td):
        secret = {"secretName": keys.name, "items": [{"key": keys.key, "path": KEYS_FILE}]}
        volumes.append(pod.mounted_volume("api-keys", {"secret": secret}, KEYS_FOLDER, read_only=True))
    if kept := capture(td):
        settings = {"configMap": {"name": capture_configmap_name(td)}}
        claim = {"persistentVolumeClaim": {"claimName": kept.persistent_volume_claim.claim_name}}
        volumes.append(pod.mounted_volume("capture-settings", settings, CAPTURE_FOLDER, read_only=True))
        volumes.append(pod.mounted_volume("capture", claim, CAPTURE_CLAIM_PATH))
    return volumes
