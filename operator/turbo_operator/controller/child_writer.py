"""The write phase: children are applied, adopted, and pruned, and so are the Job and draft of a training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from turbo_operator import render
from turbo_operator.api import ANNOTATION_APPLIED_HASH, TURBODEPLOYMENT, TurboDeployment
from turbo_operator.controller import additions, draft_publisher, model_inspection, revisions
from turbo_operator.controller.cache.projection import controller, is_controlled_by
from turbo_operator.controller.cache.store import Cache, HeldChild, Key
from turbo_operator.controller.decision import Decision, Manifest
from turbo_operator.controller.field_ownership import owns
from turbo_operator.controller.kube import ConflictError, Kube, RefusedError, StrangerError
from turbo_operator.controller.memo import Memories
from turbo_operator.resources import CHILDREN
from turbo_operator.snapshot import ChildView

# What these hold cannot be changed; their names say what is in them.
IMMUTABLE = frozenset({"ControllerRevision", "Job"})

log = logging.getLogger(__name__)


class ChildWriter:
    """Brings the children of TurboDeployments to what was decided. Raises KubeError."""

    def __init__(self, cache: Cache, api: Kube, memories: Memories) -> None:
        self._cache = cache
        self._api = api
        self._memories = memories

    async def write_children(self, key: Key, td: TurboDeployment, wanted: Sequence[Manifest]) -> None:
        """Apply what is missing or different, in order. Raises the first error."""
        futile = self._memories.of(key, td.metadata.uid).futile
        held = self._cache.children(key, td.metadata.uid)
        await self._look_for_strangers(key, td, [each for each in wanted if _place(each) not in held])
        held = self._cache.children(key, td.metadata.uid)
        for manifest in wanted:
            if _is_to_be_written(manifest, held.get(_place(manifest)), futile):
                try:
                    await self._apply(key, manifest, held.get(_place(manifest)), futile)
                except RefusedError:
                    # A list item that somebody edited stands beside ours, and both have one name.
                    if not await additions.take_out(self._api, self._cache, key, td, manifest, futile):
                        raise
                    await self._apply(key, manifest, held.get(_place(manifest)), futile)
        for manifest in wanted:  # last: what serves does not wait for it
            await additions.take_out(self._api, self._cache, key, td, manifest, futile)

    async def write_trial(self, key: Key, td: TurboDeployment, decision: Decision) -> Decision:
        """Make what a draft is tried on; the answer tells a refusal."""
        judgement = decision.judgement
        if judgement is None:
            return decision
        try:
            await self.write_children(key, td, decision.trial_children)
        except RefusedError as error:
            log.warning("refused: %s", error.message, extra={"object": str(key)})
            return replace(decision, trial=None, judgement=judgement.refused(error.sentence))
        return decision

    async def prune(self, key: Key, td: TurboDeployment, wanted: Sequence[Manifest], keep: Set[str]) -> None:
        """Remove what is not wanted, once that was applied: what is to go may be all that still serves. What
        bears a name in `keep` stays: variants whose template is not at hand, and a Job.
        """
        held = self._cache.children(key, td.metadata.uid)
        places = {_place(manifest) for manifest in wanted} - self._stale_jobs(key, td, wanted, held)
        places |= {(kind, name) for kind in ("Deployment", "ControllerRevision", "Job") for name in keep}
        # A Deployment before its ControllerRevision: it is never without one.
        for place, child in sorted(held.items(), key=lambda item: item[0][0] != "Deployment"):
            if place not in places:
                await self._remove(key, child.view)

    async def _remove(self, key: Key, child: ChildView) -> None:
        if child.terminating:  # it was asked for, and a finalizer of somebody's holds it
            return
        there = await self._api.delete(CHILDREN[child.kind], key.namespace, child.name, child.uid)
        if there is None:
            self._cache.deleted(key, child)
        else:
            self._cache.put_child(there)
        done = "removed" if there is None else "removal requested"
        log.info(done, extra={"object": str(key), "kind": child.kind, "child": child.name})

    async def write_training(self, key: Key, td: TurboDeployment, decision: Decision) -> Decision:
        """Make the Job that trains, or the TurboDraft of one that is done; the answer tells a refusal."""
        job, made = decision.training_job, decision.step.made
        there = self._cache.children(key, td.metadata.uid).get(_place(job)) if job is not None else None
        try:
            if job is not None and there is None:
                await self._look_for_strangers(key, td, [job])
                await self._apply(key, job, None, set())
            elif job is not None and there is not None and there.view.applied_hash != _hash(job):
                await self._remove(key, there.view)  # none of its pods has run: the next look makes it anew
            if made is not None:
                await draft_publisher.publish(self._api, td, made)
        except RefusedError as error:
            log.warning("refused: %s", error.message, extra={"object": str(key)})
            return replace(decision, step=decision.step.refused(error.sentence))
        return decision

    def _stale_jobs(
        self,
        key: Key,
        td: TurboDeployment,
        wanted: Sequence[Manifest],
        held: Mapping[tuple[str, str], HeldChild],
    ) -> set[tuple[str, str]]:
        """Inspect Jobs that are removed although one of the name is wanted: the next look makes it anew."""
        pods = self._cache.pods.inspecting(key)
        return {
            _place(manifest)
            for manifest in wanted
            if _place(manifest) == ("Job", render.job_name(td))
            and (there := held.get(_place(manifest))) is not None
            and model_inspection.is_stale(there.view, _hash(manifest), pods)
        }

    async def _look_for_strangers(self, key: Key, td: TurboDeployment, missing: Sequence[Manifest]) -> None:
        """Before anything is created: an object of that name that is not ours is never taken over."""
        for manifest in missing:
            kind, name = _place(manifest)
            there = await self._api.find(CHILDREN[kind], key.namespace, name)
            if there is None:
                continue
            if revisions.is_orphan(there, td):
                self._cache.put_child(await revisions.adopt(self._api, key, td, there))
                # What was decided did not know of it.
                raise ConflictError(409, "Adopted", f"{kind} {name} had lost its owner, and has it again")
            if not is_controlled_by(there, td.metadata.uid):
                owner = controller(there) or {}
                if (owner.get("kind"), owner.get("name")) == (TURBODEPLOYMENT, key.name):
                    what = f"{kind} {name} of an earlier {TURBODEPLOYMENT} is still being removed"
                    raise ConflictError(409, "Leftover", what)
                raise StrangerError(kind, name)
            self._cache.put_child(there)

    async def _apply(
        self, key: Key, manifest: Manifest, held: HeldChild | None, futile: set[tuple[str, str]]
    ) -> None:
        kind, name = _place(manifest)
        there = await self._api.apply(CHILDREN[kind], manifest)
        self._cache.put_child(there)
        if held is not None and there["metadata"]["resourceVersion"] == held.resource_version:
            # The API server keeps some field under no name: asking again would change nothing again.
            futile.add((held.view.uid, _hash(manifest)))
        changed = held is None or held.view.applied_hash != _hash(manifest)
        done = "created" if held is None else "updated" if changed else "restored"
        log.info(done, extra={"object": str(key), "kind": kind, "child": name})


def _is_to_be_written(manifest: Manifest, held: HeldChild | None, futile: Set[tuple[str, str]]) -> bool:
    if held is None:
        return True
    if held.view.applied_hash != _hash(manifest):
        return manifest["kind"] not in IMMUTABLE
    return not owns(held.fields, manifest) and (held.view.uid, _hash(manifest)) not in futile


def _place(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def _hash(manifest: Manifest) -> str:
    applied: str = manifest["metadata"]["annotations"][ANNOTATION_APPLIED_HASH]
    return applied
