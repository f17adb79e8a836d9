"""How far the copy of the model on a claim is, and what becomes of the Job that makes it. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from turbo_operator import api
from turbo_operator.api import ModelCachedReason
from turbo_operator.api.condition_state import ConditionState, false, sentence, true, unknown
from turbo_operator.drafts.training.job_state import format_progress, format_remaining
from turbo_operator.render import fetch, pod
from turbo_operator.snapshot import ChildView, FetchPod, JobPod, PodView, Snapshot
from turbo_operator.status.failures import remedy_of

RETRY_SECONDS = 600.0  # after which a Job that has failed gives way to another


@dataclass(frozen=True, slots=True)
class ModelCache:
    """One look at the copy; empty where no model is fetched to a claim."""

    condition: ConditionState | None = None
    status: api.CacheStatus | None = None
    wants_job: bool = False  # whether there shall be a Job now

    @property
    def is_missing(self) -> bool:
        """Whether pods that read it would find less than all of it."""
        return self.condition is not None and self.condition.status != "True"

    def blocks(self, observed: Snapshot, plan_hash: str | None, serving: str | None) -> bool:
        """Whether no pod of a plan may start. Of one that is `serving`, or has some, all was there before,
        though its Job be gone.
        """
        children = [child for child in observed.children if child.plan_hash == plan_hash and child.replicas]
        return self.is_missing and plan_hash not in (None, serving) and not children


NO_CACHE = ModelCache()


def build_model_cache(
    td: api.TurboDeployment, observed: Snapshot, now: float, wanted_hash: str | None
) -> ModelCache:
    """Look at the copy; `wanted_hash` is that of the Job as it would be made now, `now` in epoch seconds."""
    claim, facts = pod.fetched_claim(td), observed.model
    if claim is None:
        return NO_CACHE
    if facts is None:
        message = f"The model is fetched to claim {claim} once it is inspected."
        return ModelCache(unknown(ModelCachedReason.WAITING_FOR_MODEL, message))
    name = fetch.job_name(td, facts)
    job = next((each for each in observed.children if (each.kind, each.name) == ("Job", name)), None)
    status = api.CacheStatus(claim_name=claim, revision=facts.revision or "")
    last = td.status.cache
    if last is not None and (last.claim_name, last.revision) == (claim, status.revision):
        status = status.model_copy(update={"lost_time": last.lost_time})
    if job is not None and job.complete:
        ended = now if job.ended is None else job.ended
        pods: tuple[PodView | JobPod, ...] = (*observed.pods, *observed.trainings)
        for each in pods:
            if each.lacks and each.lacks.at > ended and fetch.is_of(td, facts, each.lacks.path):
                return _lost(job, ended, each.name, each.lacks.path, status, now)
        if any(_has_found_all(each, ended, now) for each in observed.pods):
            status = status.model_copy(update={"lost_time": None})
        message = f"{td.spec.model.uri} at {facts.revision} is on claim {claim}."
        return ModelCache(true(ModelCachedReason.CACHED, message), status, wants_job=True)
    if td.spec.suspend:
        message = "spec.suspend is true: nothing is fetched."
        return ModelCache(false(ModelCachedReason.SUSPENDED, message))
    fetching = [each for each in observed.fetching if each.job == name]
    if job is not None and job.failed:
        ended = now if job.ended is None else job.ended
        message = (
            f"The model could not be fetched to claim {claim}. {_last_words(job, fetching)} It is tried "
        )
        message += f"again at {api.rfc3339(ended + RETRY_SECONDS)}, or once Job {name} is deleted."
        # A changed spec may be the remedy: its Job comes at once.
        stays = now - ended < RETRY_SECONDS and job.applied_hash == wanted_hash
        return ModelCache(false(ModelCachedReason.FETCH_FAILED, message), status, wants_job=stays)
    # It cannot be changed: one of another spec makes room.
    wants_job = job is None or job.applied_hash == wanted_hash
    progress = next((each.progress for each in fetching if each.runs and each.progress is not None), None)
    message = f"The model is fetched to claim {claim}."
    if progress is not None:
        remaining = format_remaining(progress)
        status = status.model_copy(
            update={"progress": format_progress(progress), "estimated_remaining": remaining}
        )
        message = f"The model is fetched to claim {claim}: {status.progress}."
    elif failing := max((each for each in fetching if each.reason), key=_end, default=None):
        why = f"{sentence(failing.message or failing.reason)}{remedy_of(failing.reason, failing.message)}"
        message = f"{message} Pod {failing.name}: {why}"
        return ModelCache(unknown(ModelCachedReason.FETCH_RETRYING, message), status, wants_job)
    elif job is not None and not fetching:  # only events say why no pod can be made
        message += f" Job {name} has made no pod: kubectl describe job {name} says why."
    return ModelCache(unknown(ModelCachedReason.FETCHING, message), status, wants_job)


def _has_found_all(pod: PodView, ended: float, now: float) -> bool:
    """Whether a pod looked since the Job ended, and runs for a while with what it found."""
    if pod.started is None or pod.lacks is not None:
        return False
    return pod.started > ended and now - pod.started >= RETRY_SECONDS


def _lost(
    job: ChildView, ended: float, pod_name: str, path: str, status: api.CacheStatus, now: float
) -> ModelCache:
    """Fetch again what a pod did not find; later where a fetch of that kind has just been in vain."""
    claim = status.claim_name
    is_again = status.lost_time is not None and ended > api.epoch(status.lost_time)
    if is_again and now - ended < RETRY_SECONDS:
        message = (
            f"Pod {pod_name} does not find {path or 'the model'} on claim {claim}, though it was fetched "
            "again: see that the claim has the same content on all nodes, and that nothing removes it. It is "
            f"tried again at {api.rfc3339(ended + RETRY_SECONDS)}, or once Job {job.name} is deleted."
        )
        return ModelCache(false(ModelCachedReason.FETCH_FAILED, message), status, wants_job=True)
    if is_again or status.lost_time is None:
        status = status.model_copy(update={"lost_time": api.rfc3339(now)})
    message = f"Pod {pod_name} no longer finds all of the model on claim {claim}: it is fetched again."
    return ModelCache(unknown(ModelCachedReason.FETCHING, message), status)


def _end(each: FetchPod) -> float:
    return math.inf if each.ended is None else each.ended


def _last_words(job: ChildView, pods: Sequence[FetchPod]) -> str:
    """Return in a sentence what the last pod of a Job that has failed said, with a remedy."""
    said = [each for each in pods if each.exit_code and each.message]
    if not said:
        return sentence(job.message or "it gave no reason")
    last = max(said, key=_end)
    return f"{sentence(last.message)}{remedy_of(last.reason, last.message)}"
