"""What the inspect Job found out: its pod's termination message, or the ConfigMap that keeps it. No I/O.

The Job runs in the user's namespace under the user's pod settings; the operator reads no secret and no
volume. An answer is good for one source (URI, revision, token): the Job's name and the ConfigMap's data say
which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from turbo_operator import render
from turbo_operator.api import TurboDeployment
from turbo_operator.controller.cache.projection import InspectPod
from turbo_operator.snapshot import ChildView
from turbo_runtime.contract.model import ModelInfo


def read(
    td: TurboDeployment, children: Iterable[ChildView], pods: Sequence[InspectPod]
) -> tuple[ModelInfo | None, str | None]:
    """Return the model's facts, or None and, where something holds the answer up, a sentence on it."""
    by_name = {(view.kind, view.name): view for view in children}
    config_map = by_name.get(("ConfigMap", render.model_configmap_name(td)))
    data = (config_map.data if config_map is not None else None) or {}
    if data.get(render.SOURCE_KEY) == render.source_hash(td):
        try:
            facts = ModelInfo.from_json(data.get(render.FACTS_KEY, ""))
        except ValueError:
            pass  # edited, or of another version: the Job answers anew and the ConfigMap is written again
        else:
            if data == render.facts_data(td, facts):
                return facts, None
    name = render.job_name(td)
    job, own = by_name.get(("Job", name)), [pod for pod in pods if pod.job == name]
    for pod in own:
        if pod.succeeded:
            try:
                return ModelInfo.from_json(pod.message or ""), None
            except ValueError as error:
                return None, f"Pod {pod.name} ended without the model's facts: {error}."
    for pod in own:
        if pod.reason:
            return None, f"Pod {pod.name}: {pod.message or pod.reason}"
    if job is not None and job.failed:
        return None, f"Job {name} failed: {job.message or 'it gave no reason'}"
    if job is not None and not own and not job.complete:  # why no pod can be made is told in events alone
        return None, f"Job {name} has made no pod: kubectl describe job {name} says why."
    return None, None


def is_stale(job: ChildView, wanted_hash: str, pods: Iterable[InspectPod]) -> bool:
    """Whether a Job that is still wanted must make room for a new one: a Job cannot be changed.

    It was rendered from another spec, or it is complete and its answer went with its pod before it was read.
    """
    has_pod = any(pod.job == job.name for pod in pods)
    return job.applied_hash != wanted_hash or (job.complete and not has_pod)
