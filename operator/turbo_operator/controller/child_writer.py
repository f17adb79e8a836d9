"""All writes to children: applied, adopted, restored and pruned, and so are the Job and draft of a training.

A variant is a Deployment and the ControllerRevision of its template: where one of the two is not seen, the
other one must not be lost. What lost its label or its owner reference is found by its name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from turbo_operator import render
from turbo_operator.api import (
    ANNOTATION_APPLIED_HASH,
    TURBODEPLOYMENT,
    TurboDeployment,
)
from turbo_operator.controller import model_inspection
from turbo_operator.controller.adoption import adopt, is_orphan
from turbo_operator.controller.cache.projection import controller, is_controlled_by
from turbo_operator.controller.cache.store import Cache, CachedChild, Key, Place
from turbo_operator.controller.decision import Decision, Manifest
from turbo_operator.controller.field_ownership import added_fields, build_replacement, owns
from turbo_operator.controller.kube import ConflictError, Kube, RefusedError, StrangerError
from turbo_operator.drafts.training import FinishedDraft
from turbo_operator.drafts.training.manifests import turbo_draft
from turbo_operator.resources import CHILDREN, TURBODRAFT
from turbo_operator.snapshot import ChildView

DEPLOYMENT, REVISION, JOB = "Deployment", "ControllerRevision", "Job"
# What these hold cannot be changed; their names say what is in them.
IMMUTABLE = frozenset({REVISION, JOB})

log = logging.getLogger(__name__)


class ChildWriter:
    """Brings the children of one TurboDeployment to what was decided. Raises KubeError.

    `noop_applies` remembers between two looks which writes change nothing.
    """

    def __init__(
        self, cache: Cache, api: Kube, td: TurboDeployment, noop_applies: set[tuple[str, str]]
    ) -> None:
        self._cache = cache
        self._api = api
        self._td = td
        self._key = Key(td.metadata.namespace, td.metadata.name)
        self._noop_applies = noop_applies

    async def restore_variants(self) -> RefusedError | None:
        """Put what is missing of variants into the cache. Calls the API server only if something is missing.

        A ControllerRevision that is gone is made again of what the Deployment runs, so that no pod rolls; a
        Deployment that is gone is the rollout's matter. Returns why a part cannot be had; the other
        one stays as it is.
        """
        refusal: RefusedError | None = None
        cached = self._children()
        for (kind, name), child in cached.items():
            plan_hash = child.view.plan_hash
            if plan_hash is None or child.view.terminating:
                continue
            try:
                if kind == REVISION and (DEPLOYMENT, name) not in cached:
                    deployment = await self._find(DEPLOYMENT, name)
                    if deployment is not None and is_controlled_by(deployment, self._td.metadata.uid):
                        self._cache.put_child(deployment)
                if kind == DEPLOYMENT and (REVISION, name) not in cached:
                    await self._restore_revision(plan_hash)
            except RefusedError as error:
                refusal = error
        return refusal

    async def write_children(self, manifests: Sequence[Manifest]) -> None:
        """Apply what is missing or different, in order. Raises the first error."""
        cached = self._children()
        await self._check_names([manifest for manifest in manifests if _place(manifest) not in cached])
        cached = self._children()
        for manifest in manifests:
            child = cached.get(_place(manifest))
            if self._needs_write(manifest, child):
                try:
                    await self._apply(manifest, child)
                except RefusedError:
                    # A list item that somebody edited stands beside ours, and both have one name.
                    if not await self._remove_additions(manifest):
                        raise
                    await self._apply(manifest, child)
        for manifest in manifests:  # last: what serves does not wait for it
            await self._remove_additions(manifest)

    async def write_canary(self, decision: Decision) -> Decision:
        """Write what a draft is tried on; the decision returned tells of a refusal."""
        verdict = decision.verdict
        if verdict is None:
            return decision
        try:
            await self.write_children(decision.canary_children)
        except RefusedError as error:
            log.warning("refused: %s", error.message, extra={"object": str(self._key)})
            return replace(decision, trial=None, verdict=verdict.refused(error.sentence))
        return decision

    async def write_training(self, decision: Decision) -> Decision:
        """Write the Job that trains, or a finished TurboDraft; the decision returned tells of a refusal."""
        job, finished = decision.training_job, decision.step.finished
        child = self._children().get(_place(job)) if job is not None else None
        try:
            if job is not None and child is None:
                await self._check_names([job])
                await self._apply(job, None)
            elif job is not None and child is not None and child.view.applied_hash != _hash(job):
                await self._remove(child.view)  # none of its pods has run: the next look makes it anew
            if finished is not None:
                await self._publish(finished)
        except RefusedError as error:
            log.warning("refused: %s", error.message, extra={"object": str(self._key)})
            return replace(decision, step=decision.step.refused(error.sentence))
        return decision

    async def prune(self, manifests: Sequence[Manifest], kept_names: Set[str]) -> None:
        """Remove all children but these, once they were applied: what is to go may be all that still serves.

        What has one of `kept_names` stays: variants whose template is not at hand, and a Job.
        """
        cached = self._children()
        places = {_place(manifest) for manifest in manifests} - self._stale_jobs(manifests, cached)
        places |= {(kind, name) for kind in (DEPLOYMENT, REVISION, JOB) for name in kept_names}
        # A Deployment before its ControllerRevision: it is never without one.
        for place, child in sorted(cached.items(), key=lambda item: item[0][0] != DEPLOYMENT):
            if place not in places:
                await self._remove(child.view)

    def _children(self) -> dict[Place, CachedChild]:
        return self._cache.children(self._key, self._td.metadata.uid)

    async def _find(self, kind: str, name: str) -> Mapping[str, Any] | None:
        """Find an object by name; an orphan of ours gets its owner back."""
        body = await self._api.find(CHILDREN[kind], self._key.namespace, name)
        if body is not None and is_orphan(body, self._td):
            return await adopt(self._api, self._key, self._td, body)
        return body

    async def _restore_revision(self, plan_hash: str) -> None:
        name = render.variant_name(self._td, plan_hash)
        revision = await self._find(REVISION, name)
        if revision is not None and not is_controlled_by(revision, self._td.metadata.uid):
            raise StrangerError(REVISION, name)
        if revision is None:
            deployment = await self._api.find(CHILDREN[DEPLOYMENT], self._key.namespace, name)
            if deployment is None:  # gone meanwhile: its event is on its way
                return
            manifest = render.revision(self._td, plan_hash, deployment["spec"]["template"])
            revision = await self._api.apply(CHILDREN[REVISION], manifest)
            self._log("created", REVISION, name)
        self._cache.put_child(revision)

    async def _check_names(self, missing: Iterable[Manifest]) -> None:
        """Before anything is created: an object of that name that is not ours is never taken over."""
        for kind, name in map(_place, missing):
            body = await self._api.find(CHILDREN[kind], self._key.namespace, name)
            if body is None:
                continue
            if is_orphan(body, self._td):
                self._cache.put_child(await adopt(self._api, self._key, self._td, body))
                # The decision was made without it.
                raise ConflictError(409, "Adopted", f"{kind} {name} had lost its owner, and has it again")
            if not is_controlled_by(body, self._td.metadata.uid):
                owner = controller(body) or {}
                if (owner.get("kind"), owner.get("name")) == (TURBODEPLOYMENT, self._key.name):
                    message = f"{kind} {name} of an earlier {TURBODEPLOYMENT} is still being removed"
                    raise ConflictError(409, "Leftover", message)
                raise StrangerError(kind, name)
            self._cache.put_child(body)

    def _needs_write(self, manifest: Manifest, child: CachedChild | None) -> bool:
        if child is None:
            return True
        if child.view.applied_hash != _hash(manifest):
            return manifest["kind"] not in IMMUTABLE
        return (
            not owns(child.fields, manifest) and (child.view.uid, _hash(manifest)) not in self._noop_applies
        )

    async def _apply(self, manifest: Manifest, child: CachedChild | None) -> None:
        kind, name = _place(manifest)
        body = await self._api.apply(CHILDREN[kind], manifest)
        self._cache.put_child(body)
        if child is None:
            self._log("created", kind, name)
            return
        if body["metadata"]["resourceVersion"] == child.resource_version:
            # The API server keeps some field under no name: applying again would change nothing again.
            self._noop_applies.add((child.view.uid, _hash(manifest)))
        self._log("updated" if child.view.applied_hash != _hash(manifest) else "restored", kind, name)

    async def _remove_additions(self, manifest: Manifest) -> bool:
        """Remove what others add to a child's spec, which an apply leaves alone; whether it was written.

        A field that stays although it was removed once is a default that somebody owns.
        """
        kind, name = _place(manifest)
        child = self._children().get((kind, name))
        if child is None or not child.added:
            return False
        uid, fields = child.view.uid, " ".join(child.added)
        if (uid, fields) in self._noop_applies:
            return False
        body = await self._api.find(CHILDREN[kind], self._key.namespace, name)
        if body is None or body["metadata"]["uid"] != uid:
            return False  # gone meanwhile: its event is on its way
        body = await self._api.replace(CHILDREN[kind], build_replacement(body, manifest))
        self._cache.put_child(body)
        if remaining := added_fields(kind, body["metadata"].get("managedFields") or ()):
            self._noop_applies.add((uid, " ".join(remaining)))
        self._log("taken out", kind, name, fields=fields)
        return True

    async def _remove(self, child: ChildView) -> None:
        if child.terminating:  # it was deleted already, and a finalizer of somebody's keeps it
            return
        body = await self._api.delete(CHILDREN[child.kind], self._key.namespace, child.name, child.uid)
        if body is None:
            self._cache.mark_deleted(self._key, child)
        else:
            self._cache.put_child(body)
        self._log("removed" if body is None else "removal requested", child.kind, child.name)

    def _stale_jobs(self, manifests: Iterable[Manifest], cached: Mapping[Place, CachedChild]) -> set[Place]:
        """Return the inspect Jobs to remove although they are wanted: the next look makes them anew."""
        pods = self._cache.pods.inspecting(self._key)
        return {
            _place(manifest)
            for manifest in manifests
            if _place(manifest) == (JOB, render.job_name(self._td))
            and (child := cached.get(_place(manifest))) is not None
            and model_inspection.is_stale(child.view, _hash(manifest), pods)
        }

    async def _publish(self, finished: FinishedDraft) -> None:
        """Apply a TurboDraft; RefusedError where the API server refuses it, or a stranger's has its name."""
        training = self._td.spec.speculation.training
        if training is None:
            return
        manifest = turbo_draft(self._td, training, finished)
        name = manifest["metadata"]["name"]
        body = await self._api.find(TURBODRAFT, self._key.namespace, name)
        if body is not None and body["spec"].get("deploymentName") != self._key.name:
            raise RefusedError(
                409,
                "AlreadyExists",
                f"{TURBODRAFT.kind} {name} is there already and is no candidate of this TurboDeployment: "
                f"delete it, or write spec.deploymentName: {self._key.name} in it.",
            )
        await self._api.apply(TURBODRAFT, manifest)
        log.info("trained", extra={"object": str(self._key), "draft": name})

    def _log(self, event: str, kind: str, name: str, **details: str) -> None:
        log.info(event, extra={"object": str(self._key), "kind": kind, "child": name, **details})


def _place(manifest: Manifest) -> Place:
    return manifest["kind"], manifest["metadata"]["name"]


def _hash(manifest: Manifest) -> str:
    applied: str = manifest["metadata"]["annotations"][ANNOTATION_APPLIED_HASH]
    return applied
