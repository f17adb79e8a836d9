"""The read phase: one frozen `Snapshot` of what watches, or lists, have shown, without an API call.

The operator and `turbo explain` share it, so that both see the same. What the inspect Job has found out is
read from its pod's termination message, or the ConfigMap that keeps it: it runs in the user's namespace under
the user's pod settings, so that the operator reads no secret and no volume. An answer is good for one source
(URI, revision, token): the Job's name and the ConfigMap's data say which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from turbo_operator import render
from turbo_operator.api import LABEL_OWNER_UID, TurboDeployment
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.inventory.supply import supply_of
from turbo_operator.inventory.unavailable import unavailable_until
from turbo_operator.planner.performance.live_speedup import add_generation_seconds
from turbo_operator.render.metadata import traffic_selector
from turbo_operator.resources import INFERENCEPOOL, LEADERWORKERSET
from turbo_operator.snapshot import ChildView, DraftView, JobPod, Presence, Snapshot, identity
from turbo_runtime.contract.documents import ModelInfo

GROUPS_MISSING = (
    "a replica on more than one node needs LeaderWorkerSet in the cluster: install it as "
    "https://lws.sigs.k8s.io/docs/installation says"
)
_GROUP_LACKS = {
    Presence.PRESENT: None,
    Presence.REFUSED: "a replica on more than one node needs the operator's right to list and watch "
    "LeaderWorkerSets and StatefulSets in the namespace: grant it as the chart does",
}
_NOT_SELECTED = f"Its label {LABEL_OWNER_UID} was changed, and the Service does not select it."


def build_snapshot(
    cache: Cache, inventory: InventoryStore, key: Key, td: TurboDeployment, now: float
) -> Snapshot:
    """Return all that one look at `td` sees; `now` is in seconds since the epoch."""
    observed = cache.observe(key, td.metadata.uid)
    # A pod that the Service does not select answers nobody, until it has its label again. Where its template
    # is not seen, it may be from before there was the label: the Service may still select it.
    uid = traffic_selector(td, observed.children).get(LABEL_OWNER_UID)
    labeled = {child.plan_hash for child in observed.children if uid and child.kind == "ControllerRevision"}
    pods = tuple(
        dataclasses.replace(pod, ready=False, reason="NotSelected", message=_NOT_SELECTED)
        if pod.ready and pod.owner_uid != uid and pod.plan_hash in labeled
        else pod
        for pod in observed.pods
    )
    inspecting = tuple(
        pod for pod in cache.pods.inspecting(key, td.metadata.uid) if pod.job == render.job_name(td)
    )
    facts, error = read_model(td, observed.children, inspecting)
    if facts is not None:
        pods = add_generation_seconds(td, facts.shape, observed.accelerators, pods)
    stock = inventory.stock_for(key.namespace, now)
    supply = supply_of(stock, key.owner, td.spec.pod_template.spec)
    free = None
    if td.spec.speculation.training is not None:
        free = supply_of(stock, key.owner.trainer, td.spec.pod_template.spec)
    for name, until in unavailable_until(td, pods, now).items():
        for share in (supply, free):
            if share is not None and name in share:
                share[name] = dataclasses.replace(share[name], unavailable_until=until)
    return dataclasses.replace(
        observed,
        pods=pods,
        supply=supply,
        counted_time=stock.counted_time if inventory.moved else now,  # nothing has changed since
        free=free,
        group_lack=_GROUP_LACKS.get(cache.presence(LEADERWORKERSET.kind, key.namespace), GROUPS_MISSING),
        pool_kind=cache.presence(INFERENCEPOOL.kind, key.namespace),
        model=facts,
        model_error=error,
        inspecting=inspecting,
        draft=_draft(cache, key, td),
        named=tuple(
            (named.name, cache.drafts.get(Key(key.namespace, named.draft_ref.name)))
            for named in td.spec.speculation.named_drafts or ()
        ),
        drafts=cache.drafts_of(key),
    )


def _draft(cache: Cache, key: Key, td: TurboDeployment) -> DraftView | None:
    """Return the draft that pods are to use: the one that is named, else the one that was promoted."""
    ref, last = td.spec.speculation.draft_ref, td.status.draft
    # What pods draft with while the draft in the spec is not there: it may come, or come back.
    used = None if last is None else DraftView(**dict(last), method=td.spec.draft_method, gone=True)
    if ref is not None:
        return cache.drafts.get(Key(key.namespace, ref.name)) or used
    if last is None or used is None:
        return None
    draft = cache.drafts.get(Key(key.namespace, last.name))
    is_candidate = draft is not None and draft.deployment == key.name
    if not is_candidate and td.spec.speculation.training is None:
        return None
    if draft is not None and identity(draft) == identity(last):
        return draft
    # one that was changed under its name is a new one, to be tried first
    return dataclasses.replace(used, gone=draft is None)


def read_model(
    td: TurboDeployment, children: Iterable[ChildView], pods: Sequence[JobPod]
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
        if pod.exit_code == 0:
            try:
                return ModelInfo.from_json(pod.message or ""), None
            except ValueError as error:
                return None, f"Pod {pod.name} ended without the model's facts: {error}."
    for pod in own:
        if pod.reason:
            return None, f"Pod {pod.name}: {pod.message or pod.reason}"
    if job is not None and job.failed:
        if job.reason == "PodFailurePolicy":  # whose message is of exit codes and rules
            return None, f"Job {name} failed, and its pod, which said why, is gone."
        return None, f"Job {name} failed: {job.message or 'it gave no reason'}"
    if job is not None and not own and not job.complete:  # only events say why no pod can be made
        return None, f"Job {name} has made no pod: kubectl describe job {name} says why."
    return None, None
