"""kopf wiring only: event handlers that feed the cache and the queue, start-up, probes.

kopf watches the kinds of our own, and never writes. There are only event handlers, so that no finalizer and
no annotation ever lands on a user's object. All other kinds are reflected, without a task for each object: a
thousand TurboDeployments have six thousand children. Work starts when every kind has been listed once, by
ourselves: kopf reports that only of what it indexes, and then every object that it has yet to index wakes
every one that waits, a million times for a thousand objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import kopf
import prometheus_client

from turbo_operator import logs, metrics, resources
from turbo_operator.controller import catalog_sync, kube
from turbo_operator.controller.budgets.reservations import Reservations
from turbo_operator.controller.budgets.status_writer import BudgetStatusWriter
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.informer import ObjectHandler, OptionalKinds, Reflector
from turbo_operator.controller.inspections import Inspections
from turbo_operator.controller.inventory_sync import InventorySync
from turbo_operator.controller.kube import Kube, KubeError
from turbo_operator.controller.lease import LeaseHolder, NoLeaseError
from turbo_operator.controller.load.reference_watch import ReferenceWatch
from turbo_operator.controller.load.scraper import Scraper
from turbo_operator.controller.load.traffic_watch import TrafficWatch
from turbo_operator.controller.reconciler import Reconciler
from turbo_operator.controller.workqueue import WorkQueue
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.resources import EDITABLE, GROUPED, INFERENCEPOOL, LABELED, ROUTING, Resource
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Presence

HEALTH_PATH = "/healthz"
OPTIONAL_WAIT_SECONDS = 60.0  # for an API server that does not say whether it knows a kind
SETTLE_SECONDS = 0.3  # from a change of a child or pod to the look at it, and at what else changes until then
SHIP_SECONDS = 30.0  # between two trials to write the shipped accelerators
# Kept as a few fields or not at all, ours or not.
REFLECTED = (resources.NODE, resources.QUOTA, *EDITABLE, resources.REPLICASET)

log = logging.getLogger(__name__)


def watched(settings: Settings) -> tuple[Resource, ...]:
    """Return the kinds of which all, or those with our label, are ours."""
    return (*resources.OWN, *labeled(settings))


def labeled(settings: Settings) -> tuple[Resource, ...]:
    """Return the kinds of children that are watched by their label."""
    return (*LABELED, *(ROUTING if settings.router_image else ()))


class NoDiffs(kopf.MultiDiffBaseStorage):  # type: ignore[misc]  # kopf's types are not followed
    """A storage in no place, for which nothing is copied: the copies are a third of an event's work."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Return nothing to compare."""
        return kopf.BodyEssence()


def framework_settings() -> kopf.OperatorSettings:
    """Configure kopf to turn no log into an Event, scan for no later kinds, and store no progress."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = NoDiffs([])
    settings.persistence.progress_storage = kopf.MultiProgressStorage([])
    settings.queueing.exit_timeout = 0.2  # an event handler does no I/O: there is nothing to wait for
    return settings


class Operator:
    """The parts of one operator process, wired."""

    def __init__(self, settings: Settings, api: Kube, lease: LeaseHolder | None = None) -> None:
        """`lease`: without one it works at once."""
        self.settings, self._api, self._lease = settings, api, lease
        self.cache = Cache()
        self._store = inventory = InventoryStore(self.cache.owner_of)
        reservations = Reservations(self.cache)
        inspections = Inspections(lambda key: self.queue.add(key))
        self._reconciler = Reconciler(
            self.cache, inventory, api, settings, time.time, reservations, inspections
        )
        self._budgets = BudgetStatusWriter(self.cache, reservations, api, time.time)
        self.queue: WorkQueue[Key] = WorkQueue(
            self._reconciler.reconcile, num_workers=settings.num_workers, expected=(KubeError,)
        )
        self._inventory = InventorySync(inventory, self.cache, api, self._reconciler.plans_of, self._replan)
        wake_soon = functools.partial(self.queue.add_after, seconds=SETTLE_SECONDS)
        self.handler = ObjectHandler(self.cache, inventory, self.queue.add, wake_soon, self._inventory.show)

        def reflectors(*kinds: Resource) -> list[Reflector]:
            return [Reflector(api, self.handler, *place) for place in places(settings, kinds)]

        self._reflectors = reflectors(*REFLECTED, *labeled(settings))
        self._pods = reflectors(resources.POD)
        self._groups = OptionalKinds(api, reflectors(*GROUPED), self._set_groups)
        # What is not listed yet is found by its name before it is made.
        self._pools = OptionalKinds(api, reflectors(INFERENCEPOOL), self._set_pools, before_lists=True)
        self._relisted = reflectors(*watched(settings), *EDITABLE)
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Run until a signal ends it; raises what broke it."""
        namespaces = self.settings.namespaces
        async with asyncio.TaskGroup() as group:
            follow = [reflector.run() for reflector in self._reflectors]
            follow += [self._reflect_pods(reflector) for reflector in self._pods]
            follow += [self._groups.run(), self._pools.run()]
            follow += [lister.relist(self.settings.resync_seconds) for lister in self._relisted]
            if self._lease is not None:
                follow.append(self._lease.watch())
            work = (self._work(), self._reconciler.events.run(), *follow)
            self._tasks = [group.create_task(coroutine) for coroutine in work]
            await kopf.operator(
                registry=self.registry(),
                settings=framework_settings(),
                standalone=True,
                clusterwide=not namespaces,
                namespaces=namespaces,
                liveness_endpoint=f"http://0.0.0.0:{self.settings.health_port}{HEALTH_PATH}",
            )
            await self._cleanup()

    def _replan(self, key: Key) -> None:
        self._reconciler.outdate(key)
        self.queue.add(key)

    async def _work(self) -> None:
        # Every kind, before anything is done: a child that is missing until then may only be unseen.
        for reflector in (*self._relisted, *self._reflectors, *self._pods):
            await reflector.listed.wait()
        await self._pools_known()
        log.info("watching", extra={"deployments": len(self.cache.deployments)})
        if self._lease is not None:  # all above is known by then, and stays so
            await self._lease.acquired()
        self._inventory.count()
        metrics.QUEUE_DEPTH.set_function(lambda: self.queue.num_waiting)
        metrics.DEPLOYMENTS.set_function(lambda: len(self.cache.deployments))
        period, timeout = self.settings.scrape_seconds, self.settings.scrape_timeout_seconds
        reads = self.cache, period, timeout, self.queue.add, time.time
        async with asyncio.TaskGroup() as group:
            if self.settings.apply_catalog:
                group.create_task(self._ship())
            references = ReferenceWatch(self.cache, self._store, self._api, *reads[1:])
            loads = Scraper(*reads), TrafficWatch(*reads), references
            parts = (self._inventory, self.queue, self._budgets, *loads)
            for part in parts:
                group.create_task(part.run())

    async def _ship(self) -> None:
        """Write the shipped accelerators, once the API server takes them."""
        place = self.settings.operator_namespace or self._api.namespace
        while True:
            try:
                await catalog_sync.apply(self._api, place, self.settings.billing_unit)
            except KubeError as error:
                log.warning("the shipped accelerators cannot be written: %s", error.message)
                await asyncio.sleep(SHIP_SECONDS)
            else:
                log.info("the shipped accelerators are known")
                return

    async def _pools_known(self) -> None:
        """Wait until it is known whether there are InferencePools; not for ever: few objects have one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OPTIONAL_WAIT_SECONDS):
                await self._pools.known.wait()

    def _set_groups(self, namespace: str | None, presence: Presence) -> None:
        """Follow that the kind came or went: other plans may be possible, or none of those that were."""
        self._set(resources.LEADERWORKERSET, namespace, presence, self._replan)

    def _set_pools(self, namespace: str | None, presence: Presence) -> None:
        self._set(INFERENCEPOOL, namespace, presence, self.queue.add)

    def _set(
        self, resource: Resource, namespace: str | None, presence: Presence, wake: Callable[[Key], None]
    ) -> None:
        self.cache.presences[resource.kind, namespace] = presence
        for key in [key for key in self.cache.deployments if namespace in (None, key.namespace)]:
            wake(key)

    async def _reflect_pods(self, pods: Reflector) -> None:
        """Reflect pods once all that may control one is known."""
        for reflector in self._reflectors:
            await reflector.listed.wait()
        await self._groups.known.wait()
        await pods.run()

    # kopf

    def registry(self) -> kopf.OperatorRegistry:
        """Register every handler that kopf calls; async ones, since others would run in threads."""
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(kopf.login_via_client)
        kopf.on.probe(id="waiting", registry=registry)(self._probe)
        kopf.on.cleanup(registry=registry)(self._cleanup)
        for resource in resources.OWN:
            place = (resource.group, resource.version, resource.plural)
            event = functools.partial(self._event, resource.kind)
            kopf.on.event(*place, id=f"event-{resource.plural}", registry=registry)(event)
        return registry

    async def _event(self, kind: str, /, type: str | None, body: kopf.Body, **_: object) -> None:  # noqa: A002
        (self.handler.drop if type == "DELETED" else self.handler.put)(kind, dict(body))

    async def _cleanup(self, **_: object) -> None:
        """Stop working; kopf waits for every task that it finds running."""
        for task in self._tasks:
            task.cancel()

    async def _probe(self, **_: object) -> int:
        return self.queue.num_waiting


def places(settings: Settings, watched: tuple[Resource, ...]) -> list[tuple[Resource, str | None]]:
    """Pair what is watched with its namespaces: None is all, or outside of namespaces."""
    return [
        (resource, namespace)
        for resource in watched
        for namespace in ((settings.namespaces if resource.namespaced else ()) or (None,))
    ]


def on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what the event loop reports, but for how a stream of the framework ends when the loop is closed."""
    if "asyncgen" in context:
        log.debug("%s", context["message"], exc_info=context.get("exception"))
    else:
        loop.default_exception_handler(context)


async def serve(settings: Settings) -> None:
    """Run one operator process from start to its signal."""
    asyncio.get_running_loop().set_exception_handler(on_loop_error)
    async with kube.connect() as api:
        for resource in resources.OWN:
            if not await api.serves(resource):
                raise MissingKindError(
                    f"The API server does not know {resource.kind}: install the "
                    "CustomResourceDefinitions first (the chart does, unless crds.install is false)."
                )
        for resource, namespace in places(settings, (*watched(settings), *REFLECTED, resources.POD)):
            # The framework would try for a minute, and say so many times.
            await api.check_list(resource, namespace)
        if settings.lease_name is None:
            await Operator(settings, api).run()
            return
        place = settings.operator_namespace or api.namespace
        await api.find(resources.LEASE, place, settings.lease_name)  # a right that is missing is said at once
        async with LeaseHolder(place, settings.lease_name) as lease:
            try:
                await Operator(settings, api.fenced(lease.seconds_left), lease).run()
            except ExceptionGroup as group:
                if any(not isinstance(each, NoLeaseError) for each in group.exceptions):
                    raise
                raise NoLeaseError(str(group.exceptions[0])) from group


class MissingKindError(Exception):
    """A CustomResourceDefinition is not installed; the message says what to do."""


def run(settings: Settings) -> int:
    """Run the operator until it is told to stop; the exit code."""
    logs.configure(settings.log_format, settings.log_level)
    prometheus_client.start_http_server(settings.metrics_port)
    try:
        asyncio.run(serve(settings))
    except (MissingKindError, KubeError, NoLeaseError) as error:
        log.error("%s", error)
        return 1
    except Exception:
        log.exception("the operator cannot go on")
        return 1
    return 0
