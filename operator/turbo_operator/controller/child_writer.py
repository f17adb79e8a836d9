"""All writes to children: applied, adopted, restored and pruned, and so are the Job and draft of a training.

A variant is a workload and the ControllerRevision of its template: where one of the two is not seen, the
other one must not be lost. What lost its label is found by its name; what lost its owner gets it back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from turbo_operator import render
from turbo_operator.api import ANNOTATION_APPLIED_HASH, TURBODEPLOYMENT, Routing, TurboDeployment
from turbo_operator.controller.adoption import adopt, is_orphan
from turbo_operator.controller.cache.projection import controller, is_controlled_by
from turbo_operator.controller.cache.store import Cache, CachedChild, Key, Place
from turbo_operator.controller.decision import Decision, Manifest, is_stale_inspection
from turbo_operator.controller.field_ownership import added_fields, build_replacement, owns
from turbo_operator.controller.kube import Kube, NotOwnedError, OutdatedError, RefusedError, TerminatingError
from turbo_operator.resources import (
    CHILDREN,
    INFERENCEPOOL,
    LEADERWORKERSET,
    TURBODRAFT,
    UNDELETED,
    WORKLOADS,
)
from turbo_operator.snapshot import ChildView, PodView, Presence

REVISION, JOB = "ControllerRevision", "Job"
# What these hold cannot be changed; their names say what is in them.
IMMUTABLE = frozenset({REVISION, JOB})
FRESH_SECONDS = 3.0  # for which what was seen is good enough to take something away by

log = logging.getLogger(__name__)


@dataclass(eq=False)
class ChildWriter:
    """Brings the children of one TurboDeployment to what was decided. Raises KubeError.

    `noop_applies` remembers between two looks which writes change nothing.
    """

    key: Key
    td: TurboDeployment
    cache: Cache
    api: Kube
    noop_applies: set[tuple[str, str]]
    # When the snapshot was taken that the decision rests on.
    seen_time: float = field(default_factory=time.monotonic)
    # Why a workload keeps replicas that it was to lose: nothing may take their place.
    obstacle: RefusedError | None = None
    # What was refused so far, but for a canary and a training, whose conditions tell of it.
    refusals: dict[Place, RefusedError] = field(default_factory=dict)

    @property
    def refusal(self) -> RefusedError | None:
        """The first refusal."""
        return next(iter(self.refusals.values()), None)

    async def restore_variants(self) -> None:
        """Put what is missing of variants into the cache. Calls the API server only if something is missing.

        A ControllerRevision that is gone is made again of what the workload runs, so that no pod rolls; a
        workload that is gone is the rollout's matter. Where a part cannot be had, the other stays as it is.
        """
        cached = self._children()
        for (kind, name), child in cached.items():
            plan_hash = child.view.plan_hash
            if plan_hash is None or child.view.terminating:
                continue
            missing = REVISION if kind in WORKLOADS else render.workload_kind(child.view.data or {})
            is_unusable = missing == LEADERWORKERSET.kind and self._presence(missing) != Presence.PRESENT
            if (missing, name) in cached or is_unusable:
                continue
            try:
                body = await self._find_or_adopt(missing, name)
                if body is None and missing == REVISION:
                    body = await self._make_revision(kind, name, plan_hash)
                if body is not None and is_controlled_by(body, self.td.metadata.uid):
                    self.cache.put_child(body)
                elif body is not None and missing == REVISION:
                    raise NotOwnedError(REVISION, name)
            except RefusedError as error:
                self.refusals[missing, name] = error

    async def write_children(
        self, manifests: Sequence[Manifest], serving: str | None = None, *, ends: bool = False
    ) -> None:
        """Apply what is missing or different, what pods need first.

        What the API server refuses holds up nothing that serves: the rest is written. Where pods cannot start
        without it, no workload that serves is lowered, nor that of the plan hash `serving`, and none takes
        the place of what was to be; unless all of it `ends`.
        """
        mounted, cached = render.mounted_configmaps(manifests), self._children()
        needed = {
            place
            for place in map(_place, manifests)
            # Pods start with a ConfigMap as it was before.
            if place[0] in (*WORKLOADS, REVISION) or (place[1] in mounted and place not in cached)
        }
        # Pods answer without a router, if not as well.
        needed.discard(("Deployment", render.router.name(self.td)))
        # In front of them, a webhook that is slow to refuse what no pod needs would make old what was seen.
        for is_needed in (True, False):
            group = [manifest for manifest in manifests if (_place(manifest) in needed) == is_needed]
            await self._check_names([item for item in group if _place(item) not in self._children()])
            cached = self._children()
            for manifest in group:
                await self._write_child(manifest, cached.get(_place(manifest)), needed, serving, ends=ends)
        for manifest in manifests:  # last: what serves does not wait for it
            try:
                if _place(manifest) not in self.refusals:
                    await self._remove_additions(manifest)
            except RefusedError as error:
                self.refusals[_place(manifest)] = error

    async def _write_child(
        self,
        manifest: Manifest,
        child: CachedChild | None,
        needed: Set[Place],
        serving: str | None,
        *,
        ends: bool,
    ) -> None:
        place, more = _place(manifest), _added_replicas(manifest, child)
        # A workload is never without its ControllerRevision.
        refusal = self.refusals.get(place) or (None if child else self.refusals.get((REVISION, place[1])))
        is_loss = more < 0 and not ends and child is not None and self._serves(child.view, serving)
        if refusal is None and is_loss:
            refusal = next((self.refusals[name] for name in self.refusals if name in needed), None)
        if refusal is None and more > 0:
            refusal = self.obstacle
        if refusal is None and self._needs_write(manifest, child):
            if is_loss:
                self._check_fresh()
            try:
                await self._apply_or_clear(manifest, child)
            except RefusedError as error:
                refusal = self.refusals[place] = error
        if refusal is not None and more < 0:
            self.obstacle = self.obstacle or refusal

    def _serves(self, view: ChildView, serving: str | None) -> bool:
        """Whether a workload is that of the plan that serves, or has a pod that answers."""
        pods = [pod for pod in self.cache.pods.of(self.key, self.td.metadata.uid) if isinstance(pod, PodView)]
        is_ready = any(pod.ready and pod.plan_hash == view.plan_hash for pod in pods)
        return is_ready or view.available_replicas > 0 or view.plan_hash == serving

    async def _apply_or_clear(self, manifest: Manifest, child: CachedChild | None) -> None:
        try:
            await self._apply(manifest, child)
        except RefusedError:
            # A list item that somebody edited stands beside ours, and both have one name.
            if not await self._remove_additions(manifest):
                raise
            await self._apply(manifest, child)

    async def write_canary(self, decision: Decision) -> Decision:
        """Write what a draft is tried on; the decision returned tells of a refusal."""
        verdict = decision.verdict
        if verdict is None:
            return decision
        cached = self._children()
        growth = [_added_replicas(item, cached.get(_place(item))) for item in decision.canary_children]
        grows = any(more > 0 for more in growth)
        before, self.refusals = self.refusals, {}
        refusal = self.obstacle if grows else None
        try:
            if refusal is None:
                await self.write_children(decision.canary_children)
        finally:
            refusal, self.refusals = refusal or self.refusal, before
        if refusal is not None:
            self._log_refusal(refusal)
            return replace(decision, canary_run=None, verdict=verdict.refused(refusal.sentence))
        # A training was decided by a count without this pod.
        return replace(decision, training_job=None) if grows else decision

    async def write_training(self, decision: Decision) -> Decision:
        """Write the Job that trains, or a finished TurboDraft; the decision returned tells of a refusal."""
        job, draft = decision.training_job, decision.turbo_draft
        child = self._children().get(_place(job)) if job is not None else None
        try:
            if job is not None and child is None:
                if self.obstacle is not None:
                    raise self.obstacle
                if refusal := await self._occupant(job):
                    raise refusal
                await self._apply(job, None)
            elif job is not None and child is not None and child.view.applied_hash != _hash(job):
                await self._remove(child.view)  # none of its pods has run: the next look makes it anew
            if draft is not None:
                await self._publish(draft)
        except RefusedError as error:
            self._log_refusal(error)
            return replace(decision, step=decision.step.refused(error.sentence))
        return decision

    async def prune(self, manifests: Sequence[Manifest], kept_names: Set[str]) -> None:
        """Remove all children but these, once they were applied: what is to go may be all that still serves.
        A ConfigMap that nothing mounts any more stays until its owner goes.

        What has one of `kept_names` stays: variants whose template is not at hand, and a Job. So does the
        inspect Job until the ConfigMap holds what it has found out.
        """
        cached = self._children()
        wanted = {_place(manifest): manifest for manifest in manifests}
        places = {place for place, item in wanted.items() if not self._is_stale(item, cached.get(place))}
        places |= {(kind, name) for kind in (*WORKLOADS, REVISION, JOB) for name in kept_names}
        pool = INFERENCEPOOL.kind
        if self.td.spec.routing == Routing.GATEWAY and self._presence(pool) != Presence.ABSENT:
            places.add((pool, self.td.metadata.name))  # one is wanted, also where none could be rendered yet
        answer = ("ConfigMap", render.model_configmap_name(self.td))
        kept = cached[answer].view.applied_hash if answer in cached else None
        if answer in wanted and kept != _hash(wanted[answer]):
            places.add((JOB, render.job_name(self.td)))
        # A workload before its ControllerRevision: it is never without one.
        removable = ((place, child) for place, child in cached.items() if place[0] not in UNDELETED)
        for place, child in sorted(removable, key=lambda item: item[0][0] not in WORKLOADS):
            needed = place[0] == REVISION and any((kind, place[1]) in self.refusals for kind in WORKLOADS)
            if place not in places and not needed:
                if child.view.replicas and self._serves(child.view, None):
                    self._check_fresh()
                try:
                    await self._remove(child.view)
                except RefusedError as error:
                    self.refusals[place] = error

    def _check_fresh(self) -> None:
        """Raise where the writes before took long: others may have ceased to answer since the decision."""
        if time.monotonic() - self.seen_time > FRESH_SECONDS:
            message = "The API server is slow: the next reconcile decides by newer data."
            raise OutdatedError(409, "Conflict", message)

    def _children(self) -> dict[Place, CachedChild]:
        return self.cache.children(self.key, self.td.metadata.uid)

    def _presence(self, kind: str) -> Presence:
        return self.cache.presence(kind, self.key.namespace)

    async def _find(self, kind: str, name: str) -> dict[str, Any] | None:
        return await self.api.find(CHILDREN[kind], self.key.namespace, name)

    async def _find_or_adopt(self, kind: str, name: str) -> dict[str, Any] | None:
        """Find an object by name; an orphan of ours gets its owner back."""
        body = await self._find(kind, name)
        if body is not None and is_orphan(body, self.td):
            return await adopt(self.api, self.td, body)
        return body

    async def _make_revision(self, kind: str, name: str, plan_hash: str) -> dict[str, Any] | None:
        """Make the ControllerRevision of a workload that runs; None where it is gone."""
        workload = await self._find(kind, name)
        if workload is None:  # meanwhile: its event is on its way
            return None
        manifest = render.revision(self.td, plan_hash, render.frozen_templates(workload))
        revision = await self.api.apply(CHILDREN[REVISION], manifest)
        self._log("created", REVISION, name)
        return revision

    async def _check_names(self, missing: Iterable[Manifest]) -> None:
        """Find what is not ours and has a name of what is to be created: it is never taken over."""
        for manifest in (manifest for manifest in missing if not _scales_only(manifest)):
            if refusal := await self._occupant(manifest):
                self.refusals[_place(manifest)] = refusal

    async def _occupant(self, manifest: Manifest) -> RefusedError | None:
        """Return what is in the way of an object to be created; what is ours is put into the cache."""
        kind, name = _place(manifest)
        body = await self._find(kind, name)
        if body is None:
            return None
        if is_orphan(body, self.td):
            try:
                self.cache.put_child(await adopt(self.api, self.td, body))
            except RefusedError as error:
                return error
            # The decision was made without it.
            raise OutdatedError(409, "Conflict", f"{kind} {name} had lost its owner, and has it again.")
        if not is_controlled_by(body, self.td.metadata.uid):
            owner = controller(body) or {}
            is_terminating = (owner.get("kind"), owner.get("name")) == (TURBODEPLOYMENT, self.key.name)
            return (TerminatingError if is_terminating else NotOwnedError)(kind, name)
        self.cache.put_child(body)
        return None

    def _needs_write(self, manifest: Manifest, child: CachedChild | None) -> bool:
        if _scales_only(manifest):
            return child is not None and _added_replicas(manifest, child) != 0
        if child is None:
            return True
        if child.view.applied_hash != _hash(manifest):
            return manifest["kind"] not in IMMUTABLE
        return not owns(child.fields, manifest) and (child.view.uid, _hash(manifest)) not in self.noop_applies

    async def _apply(self, manifest: Manifest, child: CachedChild | None) -> None:
        kind, name = _place(manifest)
        if _scales_only(manifest) and child is not None:
            patch = {"metadata": {"resourceVersion": child.resource_version}, "spec": manifest["spec"]}
            self.cache.put_child(await self.api.merge(CHILDREN[kind], self.key.namespace, name, patch))
            self._log("scaled", kind, name)
            return
        body = await self.api.apply(CHILDREN[kind], manifest)
        self.cache.put_child(body)
        if child is None:
            self._log("created", kind, name)
            return
        if body["metadata"]["resourceVersion"] == child.resource_version:
            # The API server keeps some field under no name: applying again would change nothing again.
            self.noop_applies.add((child.view.uid, _hash(manifest)))
        self._log("updated" if child.view.applied_hash != _hash(manifest) else "restored", kind, name)

    async def _remove_additions(self, manifest: Manifest) -> bool:
        """Remove what others add to a child's spec, which an apply leaves alone; whether it was written.

        A field that stays although it was removed once is a default that somebody owns.
        """
        kind, name = _place(manifest)
        child = self._children().get((kind, name))
        if child is None or not child.added or _scales_only(manifest):
            return False
        uid, fields = child.view.uid, " ".join(child.added)
        if (uid, fields) in self.noop_applies:
            return False
        body = await self._find(kind, name)
        if body is None or body["metadata"]["uid"] != uid:
            return False  # gone meanwhile: its event is on its way
        body = await self.api.replace(CHILDREN[kind], build_replacement(body, manifest))
        self.cache.put_child(body)
        if remaining := added_fields(kind, body["metadata"].get("managedFields") or ()):
            self.noop_applies.add((uid, " ".join(remaining)))
        self._log("fields removed", kind, name, fields=fields)
        return True

    async def _remove(self, child: ChildView) -> None:
        if child.terminating:  # it was deleted already, and a finalizer of somebody's keeps it
            return
        body = await self.api.delete(CHILDREN[child.kind], self.key.namespace, child.name, child.uid)
        if body is None:
            self.cache.mark_deleted(self.key, child)
        else:
            self.cache.put_child(body)
        self._log("removed" if body is None else "removal requested", child.kind, child.name)

    def _is_stale(self, manifest: Manifest, child: CachedChild | None) -> bool:
        """Whether it is the inspect Job, to be removed although it is wanted: the next look makes it anew."""
        if child is None or _place(manifest) != (JOB, render.job_name(self.td)):
            return False
        pods = self.cache.pods.inspecting(self.key, self.td.metadata.uid)
        return is_stale_inspection(child.view, _hash(manifest), pods)

    async def _publish(self, manifest: Manifest) -> None:
        """Apply a TurboDraft; RefusedError where the API server refuses it, or a stranger's has its name."""
        name = manifest["metadata"]["name"]
        body = await self.api.find(TURBODRAFT, self.key.namespace, name)
        if body is not None and body["spec"].get("deploymentName") != self.key.name:
            raise RefusedError(
                409,
                "AlreadyExists",
                f"{TURBODRAFT.kind} {name} is there already and is no candidate of this TurboDeployment: "
                f"delete it, or write spec.deploymentName: {self.key.name} in it.",
            )
        await self.api.apply(TURBODRAFT, manifest)
        log.info("trained", extra={"object": str(self.key), "draft": name})

    def _log_refusal(self, error: RefusedError) -> None:
        log.warning("refused: %s", error.message, extra={"object": str(self.key)})

    def _log(self, event: str, kind: str, name: str, **details: str) -> None:
        log.info(event, extra={"object": str(self.key), "kind": kind, "child": name, **details})


def _scales_only(manifest: Manifest) -> bool:
    """Whether it is of a workload whose template is not at hand: its replicas are all that is written."""
    return manifest["kind"] in WORKLOADS and manifest["spec"].keys() == {"replicas"}


def _added_replicas(manifest: Manifest, child: CachedChild | None) -> int:
    """Count the replicas that a workload gains; what it loses is negative."""
    if manifest["kind"] not in WORKLOADS:
        return 0
    replicas: int = manifest["spec"]["replicas"]
    return replicas - ((child.view.replicas or 0) if child is not None else 0)


def _place(manifest: Manifest) -> Place:
    return manifest["kind"], manifest["metadata"]["name"]


def _hash(manifest: Manifest) -> str:
    applied: str = manifest["metadata"]["annotations"][ANNOTATION_APPLIED_HASH]
    return applied
