"""Feeds what watches and lists show to the cache and the inventory, and wakes the keys that it concerns.

Most kinds are listed and watched here and not by the framework, since that takes a list in one piece, and
every pod of a cluster in one piece is more than the operator's memory.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from turbo_operator import api
from turbo_operator.commitments import Budget
from turbo_operator.controller.cache.object_versions import ObjectStore, key_of
from turbo_operator.controller.cache.projection import budget, deployment, draft
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.kube import Kube, KubeError, RefusedError
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.inventory.usage import READERS
from turbo_operator.resources import (
    CHILDREN,
    INFERENCEPOOL,
    LABEL_GROUPED,
    LABELED,
    POD,
    REPLICASET,
    ROUTING,
    STATEFULSET,
    Resource,
)
from turbo_operator.snapshot import Accelerator, Presence

RETRY_SECONDS = 5.0
PAUSE_SECONDS = 0.5  # after a watch has ended: a server that stops ends each at once
OPTIONAL_SECONDS = 15.0  # between two looks for kinds that may be installed at any time
GONE = 410  # the version to go on from is older than what the API server remembers

Body = Mapping[str, Any]
_READERS: Mapping[str, Callable[[Body], Any]] = {
    api.TURBODEPLOYMENT: deployment,
    api.TURBOACCELERATOR: lambda body: Accelerator.of(api.parse_accelerator(body)),
    api.TURBODRAFT: lambda body: draft(api.parse_draft(body)),
    api.TURBOBUDGET: lambda body: budget(api.parse_budget(body)),
}

log = logging.getLogger(__name__)


@dataclass(eq=False)
class ObjectHandler:
    """Takes objects of every kind that is watched.

    `wake` has a key looked at, `wake_soon` a little later: pods and children change many times in a second,
    and one look is enough for all of that. `show` sees accelerators.
    """

    cache: Cache
    inventory: InventoryStore
    wake: Callable[[Key], None]
    wake_soon: Callable[[Key], None]
    show: Callable[[Body], None]

    def __post_init__(self) -> None:
        cache = self.cache
        self._stores: dict[str, ObjectStore[Any]] = {
            api.TURBODEPLOYMENT: cache.deployments,
            api.TURBOACCELERATOR: cache.accelerators,
            api.TURBODRAFT: cache.drafts,
            api.TURBOBUDGET: cache.budgets,
        }
        self._put = dict.fromkeys(CHILDREN, cache.put_child)
        self._put |= {POD.kind: cache.pods.put}
        self._put |= {set_.kind: cache.pods.put_set for set_ in (REPLICASET, STATEFULSET)}
        self._drop = dict.fromkeys(CHILDREN, cache.drop_child)
        self._drop |= {POD.kind: cache.pods.drop}
        self._drop |= {set_.kind: cache.pods.drop_set for set_ in (REPLICASET, STATEFULSET)}

    def put(self, kind: str, body: Body, /) -> None:
        """Store an object as it is now."""
        if kind in READERS:
            self.inventory.put(kind, body)
        if kind == api.TURBOACCELERATOR:
            self.show(body)
        if kind in self._put:
            self._wake_all(self._put[kind](body))
        elif kind in self._stores and self._stores[kind].put(body, _read(kind, body)):
            self._wake_by(kind, key_of(body))

    def drop(self, kind: str, body: Body, /) -> None:
        """Remove an object that is gone."""
        if kind in READERS:
            self.inventory.drop(kind, body)
        if kind in self._drop:
            self._wake_all(self._drop[kind](body))
        elif kind in self._stores and self._stores[kind].drop(body):
            self._wake_by(kind, key_of(body))

    def keep_only(self, kind: str, uids: Set[str], version: str, namespace: str | None, /) -> None:
        """Drop what a full list of one namespace, or with None of all, does not show."""
        if kind in READERS:
            self.inventory.keep_only(kind, uids, version, namespace)
        if kind in CHILDREN:
            self._wake_all(self.cache.keep_children(kind, uids, version, namespace))
        elif kind in self._put:
            self._wake_all(self.cache.pods.keep_only(kind, uids, namespace))
        elif kind in self._stores:
            for key in self._stores[kind].keep_only(uids, version, namespace):
                self._wake_by(kind, key)

    def _wake_all(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self.inventory.moved = True  # whose a pod is may have come to light
            self.wake_soon(key)

    def _wake_by(self, kind: str, key: Key) -> None:
        """Wake whom an object concerns: itself, all of its namespace, or all for an accelerator."""
        self.inventory.moved = True
        if kind == api.TURBODEPLOYMENT:
            self.wake(key)  # also of what is gone, so that nothing is kept of it
            return
        for each in sorted(self.cache.deployments):
            if key.namespace in ("", each.namespace):
                self.wake(each)


def _read(kind: str, body: Body) -> Any:
    """Read an object; None, and a line in the log, where it was stored before a rule of the API was."""
    try:
        return _READERS[kind](body)
    except api.InvalidObject as error:
        meta, is_budget = body["metadata"], kind == api.TURBOBUDGET
        what = "cannot be read, and lets nothing grow" if is_budget else "is left out"
        log.warning("%s %s: %s", kind, what, error, extra={"object": meta["name"]})
        if is_budget:
            return Budget(meta["name"], is_readable=False, uid=meta["uid"], generation=meta["generation"])
        return None


def selectors_of(resource: Resource) -> tuple[tuple[str, str], ...]:
    """Return by which label the objects of a kind are listed; none where all are."""
    # A ReplicaSet that its Deployment controls bears the labels of that one's selector.
    labeled = (*LABELED, *ROUTING, INFERENCEPOOL, REPLICASET)
    label = api.LABEL_DEPLOYMENT if resource in labeled else None
    label = LABEL_GROUPED if resource is STATEFULSET else label
    return (("labelSelector", label),) if label else ()


@dataclass(eq=False)
class Reflector:
    """Keeps what `handler` holds of a kind like the cluster, in one namespace or with None in all."""

    api: Kube
    handler: ObjectHandler
    resource: Resource
    namespace: str | None

    def __post_init__(self) -> None:
        self._selectors = selectors_of(self.resource)
        self.listed = asyncio.Event()
        self._version: str | None = None  # to go on from: what came before a break is not asked for again
        self._unreadable: dict[str, str] = {}  # by uid the version that was logged

    async def run(self) -> None:
        """Follow until cancelled: a new list after what cannot be gone on from."""
        while True:
            try:
                if self._version is None:
                    self._version = await self.list()
                    self.listed.set()
                await self._watch(self._version)
            except KubeError as error:
                if error.status == GONE:
                    self._version = None
                else:
                    log.warning("%s cannot be watched: %s", self.resource.plural, error.message)
                    await asyncio.sleep(RETRY_SECONDS)
            await asyncio.sleep(PAUSE_SECONDS)

    async def relist(self, seconds: float) -> None:
        """List now and then what else watches: a watch that was cut off for long has missed deletions."""
        while True:
            try:
                await self.list()
                self.listed.set()
            except KubeError as error:
                log.warning("could not list: %s", error.message)
            await asyncio.sleep(seconds if self.listed.is_set() else RETRY_SECONDS)

    async def list(self) -> str:
        """List once; the resource version to watch from."""
        kind, version = self.resource.kind, ""
        uids: set[str] = set()
        async for page, version in self.api.pages(self.resource, self.namespace, self._selectors):  # noqa: B007
            for body in page:
                self._hand(self.handler.put, body)
                uids.add(body["metadata"]["uid"])
        self.handler.keep_only(kind, uids, version, self.namespace)
        return version

    async def _watch(self, version: str) -> None:
        """Watch from a version until the API server ends the watch."""
        events = self.api.watch(self.resource, self.namespace, version, self._selectors)
        async for change, body in events:
            if change == "DELETED":
                self._hand(self.handler.drop, body)
            elif change != "BOOKMARK":
                self._hand(self.handler.put, body)
            self._version = body["metadata"]["resourceVersion"]

    def _hand(self, take: Callable[[str, Body], None], body: Body) -> None:
        """Hand one object on: one that somebody wrote as nobody expected must not stop the others."""
        meta = body["metadata"]
        try:
            take(self.resource.kind, body)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if self._unreadable.get(meta["uid"]) != meta["resourceVersion"]:
                self._unreadable[meta["uid"]] = meta["resourceVersion"]
                message = "%s cannot be read, and counts as it was before: %r"
                details = {"object": str(key_of(body))}
                log.warning(message, self.resource.kind, error, exc_info=error, extra=details)
            return
        self._unreadable.pop(meta["uid"], None)


class OptionalKinds:
    """Reflects kinds while the cluster knows the first of them, in the namespaces that show all of them.

    They may come and go. `follow` is called with a namespace (None: all) and what they have become there:
    present once they are listed, or, with `before_lists`, before the handler has the first of them.
    """

    def __init__(
        self,
        api: Kube,
        reflectors: Sequence[Reflector],
        follow: Callable[[str | None, Presence], None],
        *,
        before_lists: bool = False,
    ) -> None:
        self._api, self._follow, self._before_lists = api, follow, before_lists
        self._resource = reflectors[0].resource
        self._places: dict[str | None, list[Reflector]] = {}
        for reflector in reflectors:
            self._places.setdefault(reflector.namespace, []).append(reflector)
        self.known = asyncio.Event()  # everywhere: what there is of them is listed
        self._unknown = set(self._places)
        self._presences: dict[str | None, Presence] = {}

    async def run(self) -> None:
        """Look for them until cancelled."""
        while True:
            presence = await self._ask(self._find)
            if presence == Presence.PRESENT:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._reflect(place)) for place in self._places]
                    await self._lose_them()
                    for task in tasks:
                        task.cancel()
                presence = Presence.ABSENT
            for place in self._places:
                self._settle(place, presence)
            await asyncio.sleep(OPTIONAL_SECONDS)

    async def _lose_them(self) -> None:
        """Wait until the cluster no longer knows them."""
        presence = Presence.PRESENT
        while presence != Presence.ABSENT:
            await asyncio.sleep(OPTIONAL_SECONDS)
            presence = await self._ask(self._find)

    async def _reflect(self, namespace: str | None) -> None:
        """Reflect them in a namespace once it shows them. Later a refusal is as of any other kind."""
        reflectors = self._places[namespace]
        while await self._ask(functools.partial(self._check, reflectors)) == Presence.REFUSED:
            self._settle(namespace, Presence.REFUSED)
            await asyncio.sleep(OPTIONAL_SECONDS)
        if self._before_lists:
            self._set(namespace, Presence.PRESENT)
        async with asyncio.TaskGroup() as group:
            for reflector in reflectors:
                group.create_task(reflector.run())
            for reflector in reflectors:
                await reflector.listed.wait()
            self._settle(namespace, Presence.PRESENT)

    def _settle(self, namespace: str | None, presence: Presence) -> None:
        self._set(namespace, presence)
        self._unknown.discard(namespace)
        if not self._unknown:
            self.known.set()

    def _set(self, namespace: str | None, presence: Presence) -> None:
        if self._presences.get(namespace) != presence:
            self._presences[namespace] = presence
            self._follow(namespace, presence)

    async def _find(self) -> Presence:
        return Presence.PRESENT if await self._api.serves(self._resource) else Presence.ABSENT

    async def _check(self, reflectors: Iterable[Reflector]) -> Presence:
        for reflector in reflectors:
            await self._api.check_list(reflector.resource, reflector.namespace)
        return Presence.PRESENT

    async def _ask(self, question: Callable[[], Awaitable[Presence]]) -> Presence:
        """Ask until the API server answers: what is not known is not taken for absent."""
        while True:
            try:
                return await question()
            except RefusedError as error:
                log.warning("the API server refuses %s: %s", self._resource.plural, error.message)
                return Presence.REFUSED
            except KubeError as error:
                message = "it is not known whether there are %s: %s"
                log.warning(message, self._resource.plural, error)
                await asyncio.sleep(RETRY_SECONDS)
