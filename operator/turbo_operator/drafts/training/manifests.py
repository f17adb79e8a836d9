"""The Job that trains a draft, the TurboDraft that comes of it, and their names. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from turbo_operator import api
from turbo_operator.api import Training, TrainingStatus, TurboDeployment, quantity
from turbo_operator.budget import DEVICE_POD_CORES
from turbo_operator.drafts.training.job_state import JobRequest
from turbo_operator.planner.performance.memory import on_cpu
from turbo_operator.render import draft_volume, fetch, pod, server, url
from turbo_operator.render.metadata import build_child, digest, labels
from turbo_operator.render.template import resources
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Accelerator
from turbo_runtime.contract.documents import DraftManifest, ModelInfo
from turbo_runtime.contract.endpoints import PORT, PORT_NAME
from turbo_runtime.version import turbo_version

CONTAINER = "train"
PROMPTS_PATH, PROMPTS_FILE = "/prompts", "prompts.jsonl"
# Pods that may end badly, each followed by a pause of 10 s, doubled up to ten minutes; what is done stays so.
RETRIES = 20
GRACE_SECONDS = 30
# What other trainings of a deployment of this name have left half done serves nobody, and tells prompts.
SCRIPT = (
    'for work in "${0%/*}"/[0-9]*/work; do [ "$work" = "$0/work" ] || rm -rf "$work"; done; '
    'exec turbo distill "$@"'
)
# The first of the keys, for the pods that are asked.
_KEY = (
    f"OPENAI_API_KEY=$(sed -n '/^ *\\(#\\|$\\)/d; s/^ *//; s/^[^:]*://; s/ *$//; p; q' {server.KEYS_PATH}); "
    "export OPENAI_API_KEY; "
)


def job_name(td: TurboDeployment, number: int) -> str:
    """`NAME-train-NUMBER`."""
    return f"{td.metadata.name}-train-{number}"


def draft_name(td: TurboDeployment, number: int | str) -> str:
    """`NAME-draft-NUMBER`."""
    return f"{td.metadata.name}-draft-{number}"


def folder(td: TurboDeployment, number: int, work: str) -> str:
    """`NAME/NUMBER-WORK` below the root of the claim of drafts: what was begun otherwise is of no use."""
    return f"{td.metadata.name}/{number}-{work}"


def last_draft(td: TurboDeployment, names: Iterable[str]) -> int:
    """Return the largest number of a TurboDraft among the names; 0 where there is none."""
    pattern = re.compile(re.escape(draft_name(td, "")) + "([0-9]+)")
    return max((int(found[1]) for name in names if (found := pattern.fullmatch(name))), default=0)


def threads(td: TurboDeployment, accelerator: Accelerator) -> int:
    """Return the threads of a training: one for each core that its pod may use."""
    if not on_cpu(accelerator):
        return DEVICE_POD_CORES
    overlay = td.spec.pod_template.spec.resources
    limits = (overlay.limits if overlay else None) or {}
    return max(1, int(quantity(limits["cpu"]) if "cpu" in limits else accelerator.quantity))


def spec_hash(training: Training) -> str:
    """Hash all of the spec: what ended badly waits for another one."""
    return digest(training.dump())[:8]


def work_hash(
    td: TurboDeployment, training: Training, model_digest: str, accelerator: Accelerator, dtype: str
) -> str:
    """Hash what decides the draft, as far as the operator knows it, and of whose it is: a folder that was
    begun by one is of no use to another, as `turbo distill` would say of it.

    The version of Turbo is the image's, so the operator's own counts only where it brings the image. What
    prompts say is not known; a TurboDeployment that is made again may well bring others under their name.
    """
    is_asked = td.spec.is_on_vllm  # the pods are, whatever their image
    work = (
        td.metadata.uid,
        model_digest,
        training.prompts.dump(),
        training.domain or td.metadata.name,
        training.max_output_tokens,
        training.persistent_volume_claim.dump(),
        accelerator.name,
        threads(td, accelerator),
        dtype,
        turbo_version() if is_asked else td.spec.engine.image or turbo_version(),
        *((api.Method.EAGLE3,) if td.spec.draft_method == api.Method.EAGLE3 else ()),
    )
    return digest(work)[:8]


def training_job(
    td: TurboDeployment, begin: JobRequest, facts: ModelInfo, settings: Settings
) -> dict[str, Any]:
    """Build `NAME-train-NUMBER`: pods, one after the other, that run `turbo distill` into the same folder."""
    training = td.spec.speculation.training
    assert training is not None  # else there is no request
    choice = begin.choice
    prompts, prompts_path = _prompts(td, training)
    claim = training.persistent_volume_claim.claim_name
    out = f"{draft_volume.claim_path(claim)}/{folder(td, begin.number, begin.work)}"
    is_asked = td.spec.is_on_vllm
    keys = server.volumes_of(td) if is_asked else []
    command = ["sh", "-c", f"{_KEY}{SCRIPT}" if keys else SCRIPT, out]
    arguments = _arguments(td, training, begin, facts, prompts_path, out)
    image, amounts = pod.runtime_image(td, settings), resources(td, choice)
    container = pod.build_container(td, settings, image, CONTAINER, command, arguments, amounts)
    container["ports"] = [{"name": PORT_NAME, "containerPort": PORT, "protocol": "TCP"}]
    drafts = {"persistentVolumeClaim": {"claimName": claim}}
    volume = pod.mounted_volume("drafts", drafts, draft_volume.claim_path(claim))
    spec = pod.pod_spec(td, container, choice, [volume, prompts, *keys])
    spec["securityContext"] |= pod.OWN_GROUP
    if before := fetch.init_containers(td, facts, settings, spec):
        spec["initContainers"] = before
    spec |= {"restartPolicy": "Never", "terminationGracePeriodSeconds": GRACE_SECONDS}
    disruption = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    own = {**labels(td, api.ROLE_TRAIN), **pod.placement_labels(choice)}
    job: dict[str, Any] = {
        "backoffLimit": RETRIES,
        "podFailurePolicy": {"rules": [pod.failing_at_once(CONTAINER), disruption]},
        "template": {"metadata": pod.pod_metadata(td, own), "spec": spec},
    }
    if begin.deadline_seconds is not None:
        job["activeDeadlineSeconds"] = begin.deadline_seconds
    return build_child(td, "Job", job_name(td, begin.number), api.ROLE_TRAIN, {"spec": job})


def _arguments(
    td: TurboDeployment, training: Training, begin: JobRequest, facts: ModelInfo, prompts: str, out: str
) -> list[str]:
    """Return model, arithmetic and threads as served, so that answers are those that are served."""
    choice, serving = begin.choice, begin.serving
    model, revision = pod.served_model(td, facts)
    arguments = [
        model,
        *([f"--revision={revision}"] if revision else []),
        f"--prompts={prompts}",
        f"--out={out}",
        f"--domain={training.domain or td.metadata.name}",
        f"--max-tokens={training.max_output_tokens}",
        f"--device={'cpu' if on_cpu(choice.accelerator) else 'cuda'}",
        f"--dtype={serving.dtype}",
        f"--threads={threads(td, choice.accelerator)}",
        f"--max-model-len={serving.max_model_len}",
        f"--progress-port={PORT}",
        f"--termination-message={pod.TERMINATION_LOG}",
    ]
    arguments += ["--method=eagle3"] if td.spec.draft_method == api.Method.EAGLE3 else []
    if td.spec.is_on_vllm:  # pods serve with vLLM, so their answers are what it learns
        return [*arguments, f"--from={url(td)}"]
    # speeds of another machine than the one that serves say nothing
    return arguments if choice.accelerator.name == serving.accelerator.name else [*arguments, "--no-speedup"]


def _prompts(td: TurboDeployment, training: Training) -> tuple[pod.MountedVolume, str]:
    """Return the volume of the prompts, and their path in the container."""
    prompts, file = training.prompts, PROMPTS_FILE
    if (ref := prompts.config_map) is not None:
        items = [{"key": ref.key, "path": PROMPTS_FILE}]
        volume: dict[str, Any] = {"configMap": {"name": ref.name, "items": items}}
    else:
        captured = td.spec.capture.persistent_volume_claim if td.spec.capture else None
        claim = prompts.persistent_volume_claim or captured
        assert claim is not None  # captured prompts ask for spec.capture, by a rule of the API's
        # Not read-only as a volume: the claim may be the one that drafts are written to.
        volume = {"persistentVolumeClaim": {"claimName": claim.claim_name}}
        file = prompts.persistent_volume_claim.path if prompts.persistent_volume_claim else td.metadata.name
    return pod.mounted_volume("prompts", volume, PROMPTS_PATH, read_only=True), f"{PROMPTS_PATH}/{file}"


def turbo_draft(
    td: TurboDeployment, training: Training, state: TrainingStatus, facts: DraftManifest
) -> dict[str, Any]:
    """Build `NAME-draft-NUMBER`. Nobody owns it: draft and folder outlive the TurboDeployment."""
    name, path = td.metadata.name, folder(td, state.number, state.input_hash)
    return {
        "apiVersion": api.API_VERSION,
        "kind": api.TURBODRAFT,
        "metadata": {
            "name": draft_name(td, state.number),
            "namespace": td.metadata.namespace,
            "labels": {api.LABEL_MANAGED_BY: api.FIELD_MANAGER, api.LABEL_DEPLOYMENT: name},
        },
        "spec": {
            "method": api.Method.TURBO_HEADS if facts.method == "heads" else api.Method.EAGLE3,
            "location": {"claimName": training.persistent_volume_claim.claim_name, "path": path},
            "version": facts.version,
            "digest": facts.digest,
            "targetDigest": facts.target_digest,
            "deploymentName": name,
            "domain": facts.domain,
            "evaluation": [worth.to_api() for worth in facts.worth],
        },
    }
