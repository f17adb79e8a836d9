"""What holds up pods and children, in the words of Kubernetes and with a remedy. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from turbo_operator import api
from turbo_operator.api.condition_state import ConditionState, false, sentence
from turbo_operator.resources import WORKLOADS
from turbo_operator.snapshot import ChildView, PodView, Snapshot

_FINALIZERS_OF_KUBERNETES = {"foregroundDeletion", "orphan", "batch.kubernetes.io/job-tracking"}
# What Kubernetes says of a pod, and what it means for the user.
POD_REASONS: Mapping[str, api.AvailableReason] = {
    reason: meaning
    for meaning, reasons in {
        api.AvailableReason.WAITING_FOR_ACCELERATOR: "Unschedulable SchedulingGated",
        api.AvailableReason.IMAGE_PULL_BACK_OFF: "ErrImagePull ImagePullBackOff ImageInspectError "
        "InvalidImageName ErrImageNeverPull RegistryUnavailable",
        api.AvailableReason.OOM_KILLED: "OOMKilled",
        api.AvailableReason.CRASH_LOOP_BACK_OFF: "CrashLoopBackOff CreateContainerConfigError "
        "CreateContainerError RunContainerError StartError ContainerCannotRun Error Evicted",
    }.items()
    for reason in reasons.split()
}


def failure(observed: Snapshot, plan_hash: str) -> str:
    """Say what holds up the pods of a variant, in a sentence; empty where they say nothing."""
    if dropped := dropped_volume(observed, plan_hash):
        return dropped
    pods = [pod for pod in observed.pods if pod.plan_hash == plan_hash and not pod.terminating]
    # else one that has ended
    failing = first_failing(pod for pod in pods if pod.is_serving) or first_failing(pods)
    if failing:
        return failing.message
    messages = (child.message for child in observed.children if child.plan_hash == plan_hash)
    if message := next((sentence(message) for message in messages if message), ""):
        return message
    loading = sorted(pod.name for pod in pods if pod.is_serving and not pod.ready and not pod.pending_since)
    if not loading:
        return ""
    return f"Pod {loading[0]} runs and is not ready: if it needs longer, raise spec.rollout.progressDeadline."


def first_failing(pods: Iterable[PodView]) -> ConditionState | None:
    """Return what the first pod that is not ready says, what Kubernetes names clearly first."""
    failing = (pod for pod in pods if not pod.ready and pod.reason)
    pod = min(failing, key=lambda pod: (pod.reason not in POD_REASONS, pod.name), default=None)
    if pod is None:
        return None
    reason = POD_REASONS.get(pod.reason or "", api.AvailableReason.MODEL_LOADING)
    message = sentence(pod.message) or "it left no message."
    image = "spec.engine.image" if pod.plan_hash else "image.router of the chart"
    return false(reason, f"Pod {pod.name}: {pod.reason}: {message}{remedy_of(pod.reason, message, image)}")


def kept_by_finalizer(child: ChildView) -> str | None:
    """Say in a sentence which finalizer of somebody's keeps a deleted child."""
    foreign = [name for name in child.finalizers if name not in _FINALIZERS_OF_KUBERNETES]
    if not (child.terminating and foreign):
        return None
    return f"{child.kind} {child.name} was deleted, and finalizer {foreign[0]} keeps it: remove that."


def dropped_image(td: api.TurboDeployment, job: ChildView) -> str:
    """Say that a cluster has dropped the image of a model from the pods of a Job; empty where it has not."""
    if td.spec.model.image is None or job.has_image:
        return ""
    return _dropped(f"that of {td.spec.model.image}", f"Job {job.name}")


def dropped_volume(observed: Snapshot, plan_hash: str | None) -> str:
    """Say that a cluster has dropped an image that pods of a variant are to mount, as of a draft model, which
    no inspection reads; empty where it has not.
    """
    children = {child.kind: child for child in observed.children if child.plan_hash == plan_hash}
    workload = next((children[kind] for kind in WORKLOADS if kind in children), None)
    frozen = children.get("ControllerRevision")
    if workload is None or frozen is None or frozen.data is None:
        return ""
    volumes = frozen.data["spec"].get("volumes", ())
    images = [volume["image"]["reference"] for volume in volumes if "image" in volume]
    pods = [pod for pod in observed.pods if pod.plan_hash == plan_hash]
    if not images or not pods or any(pod.has_image or pod.ready for pod in pods):
        return ""
    return _dropped(f"those of {' and '.join(images)}", f"{workload.kind} {workload.name}")


def _dropped(images: str, owner: str) -> str:
    return (
        f"The API server has no image volumes, and dropped {images}: take Kubernetes 1.35, or switch on the "
        f"feature gate ImageVolume of API server and kubelets (from 1.33 on), then delete {owner}."
    )


def remedy_of(reason: str | None, message: str | None, image: str = "spec.engine.image") -> str:
    """Return a sentence, after a space, on what helps a pod that says so; empty where none is known.

    `image` is where its image is written.
    """
    if POD_REASONS.get(reason or "") == api.AvailableReason.IMAGE_PULL_BACK_OFF:
        return f" Correct {image} or spec.podTemplate.spec.imagePullSecrets."
    if message and "HF_ENDPOINT" in message:
        return " Environment variables are in spec.podTemplate.spec.env, or in modelEnv of the chart."
    if message and "HF_TOKEN" in message:
        return " spec.model.tokenSecretRef names the Secret that has it."
    if message and "AWS_ACCESS_KEY_ID" in message:
        return (
            " spec.model.s3.secretRef names a Secret that has them, or podTemplate.spec.serviceAccountName a "
            "service account with a role."
        )
    if message and "AWS_ENDPOINT_URL" in message:
        return " spec.model.s3.endpoint says it."
    if message and "its revision was" in message:
        return " Delete ConfigMap NAME-model of this object, and the bucket is inspected anew."
    if message and re.search("volume node affinity conflict|ReadWriteOncePod", message):
        return " Pods on several nodes need a claim that several may mount: ReadWriteMany or ReadOnlyMany."
    if message and re.search('persistentvolumeclaim "[^"]+" not found', message):  # the scheduler's words
        return " Correct the name of the claim where the spec has it, or make a claim of this name."
    return ""
