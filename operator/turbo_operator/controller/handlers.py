"""kopf wiring only: event handlers that feed the cache and the queue, start-up, probes.

kopf watches, re-authenticates and serves the probe; it never writes. There are only event handlers, so that
no finalizer and no annotation ever lands on a user's object. Work starts when every kind has been listed
once, by ourselves: kopf says so only of what it indexes, and then every object that it has yet to index wakes
every one that waits, a million times for a thousand objects.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import kopf
import prometheus_client

from turbo_operator import logs, metrics, resources
from turbo_operator.api import LABEL_DEPLOYMENT, InvalidObject, parse_accelerator, parse_draft
from turbo_operator.catalog import as_row
from turbo_operator.controller import catalog_sync, kube
from turbo_operator.controller.cache.feed import Feed
from turbo_operator.controller.cache.projection import draft as as_view
from turbo_operator.controller.cache.reflector import RETRY_SECONDS, Follower
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.inventory_sync import Inventory
from turbo_operator.controller.kopf_config import NoDiffs, NoProgress
from turbo_operator.controller.kube import Kube, KubeError
from turbo_operator.controller.reconciler import Reconciler
from turbo_operator.controller.scraper import Scraper
from turbo_operator.controller.workqueue import WorkQueue
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.resources import Resource
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Accelerator, DraftView

HEALTH_PATH = "/healthz"

log = logging.getLogger(__name__)

Body = dict[str, Any]


class Operator:
    """The rooms of one operator process, wired."""

    def __init__(self, settings: Settings, api: Kube) -> None:
        self.settings = settings
        self.api = api
        self.cache = Cache()
        self.ledger = InventoryStore(self.cache.pods.owner_of)
        reconciler = Reconciler(self.cache, self.ledger, api, settings, time.time)
        self.queue: WorkQueue[Key] = WorkQueue(
            reconciler.reconcile, num_workers=settings.num_workers, expected=(KubeError,)
        )
        self.plans = reconciler.plans
        self.inventory = Inventory(self.ledger, self.cache, api, reconciler.answers, self._replan)
        self.feed = Feed(self.cache, self.ledger, self.queue.add)
        self.followers = [Follower(api, self.feed, *place) for place in places(settings, FOLLOWED)]
        self.pods = [Follower(api, self.feed, *place) for place in places(settings, (resources.POD,))]
        self._tasks: list[asyncio.Task[None]] = []
        metrics.QUEUE_DEPTH.set_function(lambda: self.queue.num_waiting)
        metrics.DEPLOYMENTS.set_function(lambda: len(self.cache.all_keys()))

    async def run(self) -> None:
        """Run until a signal ends it; raises what broke it."""
        namespaces = self.settings.namespaces
        async with asyncio.TaskGroup() as group:
            period, timeout = self.settings.scrape_seconds, self.settings.scrape_timeout_seconds
            scraper = Scraper(self.cache, period, timeout, self.queue.add, time.time)
            follow = [follower.run() for follower in self.followers]
            follow += [self._follow_pods(follower) for follower in self.pods]
            work = (self._work(), self._resync(), scraper.run(), *follow)
            self._tasks = [group.create_task(each) for each in work]
            await kopf.operator(
                registry=self.registry(),
                settings=framework_settings(),
                standalone=True,
                clusterwide=not namespaces,
                namespaces=namespaces,
                liveness_endpoint=f"http://0.0.0.0:{self.settings.health_port}{HEALTH_PATH}",
            )
            await self._cleanup()

    # Feeding: what a watch shows goes into the cache; what it changes wakes the keys concerned.

    def put(self, resource: Resource, body: Body) -> None:
        """An object as a watch or a list shows it."""
        if resource is resources.TURBOACCELERATOR:
            self._put_accelerator(body)
            return
        if resource is resources.TURBODRAFT:
            self._put_draft(body)
            return
        if resource is resources.TURBODEPLOYMENT:
            for key in self.cache.put_deployment(body):
                self.queue.add(key)
            return
        self.feed.put(resource.kind, body)

    def drop(self, resource: Resource, body: Body) -> None:
        """An object is gone."""
        if resource is resources.TURBOACCELERATOR:
            if self.cache.drop_accelerator(body):
                self._wake_all()
        elif resource is resources.TURBODRAFT:
            if self.cache.drafts.drop(body):
                self._wake_all(body["metadata"]["namespace"])
        elif resource is resources.TURBODEPLOYMENT:
            dropped = self.cache.drop_deployment(body)
            if dropped is not None:
                self.queue.forget(dropped)
                self.queue.add(dropped)  # so that nothing is kept of it
        else:
            self.feed.drop(resource.kind, body)

    def _put_accelerator(self, body: Body) -> None:
        self.inventory.shown(body)
        row: Accelerator | None = None
        try:
            row = as_row(parse_accelerator(body))
        except InvalidObject as error:
            # Stored before its rule was. One that cannot be read cannot be planned with.
            log.warning("TurboAccelerator is left out: %s", error, extra={"object": body["metadata"]["name"]})
        if self.cache.put_accelerator(body, row):
            self._wake_all()

    def _put_draft(self, body: Body) -> None:
        view: DraftView | None = None
        try:
            view = as_view(parse_draft(body))
        except InvalidObject as error:
            log.warning("TurboDraft is left out: %s", error, extra={"object": body["metadata"]["name"]})
        if self.cache.drafts.put(body, view):
            self._wake_all(body["metadata"]["namespace"])

    def _replan(self, key: Key) -> None:
        self.plans.outdate(key)
        self.queue.add(key)

    def _wake_all(self, namespace: str | None = None) -> None:
        for key in self.cache.all_keys():
            if namespace in (None, key.namespace):
                self.queue.add(key)

    async def _work(self) -> None:
        await self._list_first()
        for follower in (*self.followers, *self.pods):
            await follower.listed.wait()
        self.inventory.count()
        log.info("watching", extra={"deployments": len(self.cache.all_keys())})
        async with asyncio.TaskGroup() as group:
            group.create_task(self.inventory.run())
            group.create_task(self.queue.run())

    async def _follow_pods(self, pods: Follower) -> None:
        """Follow pods once all that may control one is known."""
        for follower in self.followers:
            await follower.listed.wait()
        await pods.run()

    async def _resync(self) -> None:
        """List everything now and then: a watch that was cut off for too long has missed deletions."""
        while True:
            await asyncio.sleep(self.settings.resync_seconds)
            await self._list_all()

    async def _list_first(self) -> None:
        """Every kind, before anything is done: a child that is missing until then may only be unseen."""
        while True:
            if await self._list_all():
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def _list_all(self) -> bool:
        """Whether every kind could be listed."""
        try:
            for resource, namespace in places(self.settings, (*WATCHED, *EDITABLE)):
                await self._relist(resource, namespace)
        except KubeError as error:
            log.warning("could not list: %s", error.message)
            return False
        return True

    async def _relist(self, resource: Resource, namespace: str | None) -> None:
        selectors = [("labelSelector", LABEL_DEPLOYMENT)] if resource in LABELLED else []
        uids, version = set(), ""
        async for page, version in self.api.pages(resource, namespace, selectors):  # noqa: B007
            for body in page:
                self.put(resource, body)
                uids.add(body["metadata"]["uid"])
        if resource is resources.TURBOACCELERATOR:
            if self.cache.keep_accelerators(uids, version):
                self._wake_all()
            return
        if resource is resources.TURBODRAFT:
            for lost in self.cache.drafts.keep(uids, version, namespace):
                self._wake_all(lost)
            return
        if resource is resources.TURBODEPLOYMENT:
            for key in self.cache.keep_only(resource.kind, uids, version, namespace):
                self.queue.add(key)
            return
        self.feed.keep_only(resource.kind, uids, version, namespace)

    # kopf

    def registry(self) -> kopf.OperatorRegistry:
        """Every handler that kopf calls; async ones, since others would run in a thread of their own."""
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(login)
        kopf.on.probe(id="waiting", registry=registry)(self._probe)
        kopf.on.cleanup(registry=registry)(self._cleanup)
        for resource in WATCHED:
            place = (resource.group, resource.version, resource.plural)
            kopf.on.event(*place, id=f"event-{resource.plural}", registry=registry)(self._watcher(resource))
        return registry

    def _watcher(self, resource: Resource) -> Callable[..., Any]:
        async def event(type: str | None, body: kopf.Body, **_: object) -> None:  # noqa: A002  kopf's name
            feed = self.drop if type == "DELETED" else self.put
            feed(resource, dict(body))

        return event

    async def _cleanup(self, **_: object) -> None:
        """Stop working; kopf waits for every task that it finds running."""
        for task in self._tasks:
            task.cancel()

    async def _probe(self, **_: object) -> int:
        return self.queue.num_waiting


# What pods come from: all are watched, since one may lose its label, and kept where they are ours.
EDITABLE = (resources.CHILDREN["Deployment"], resources.CHILDREN["Job"])
# Of these the API server sends only what bears our label: one that lost it is found by its name.
LABELLED = tuple(resource for resource in resources.CHILDREN.values() if resource not in EDITABLE)
WATCHED = (resources.TURBODEPLOYMENT, resources.TURBOACCELERATOR, resources.TURBODRAFT, *LABELLED)
# Kept as a few fields or not at all, whoever it belongs to: so not by the framework.
FOLLOWED = (resources.NODE, resources.QUOTA, *EDITABLE, resources.REPLICASET)


def places(settings: Settings, watched: tuple[Resource, ...] = WATCHED) -> list[tuple[Resource, str | None]]:
    """What is watched, and in which namespace: None is all, or outside of namespaces."""
    everywhere: tuple[None] = (None,)
    return [
        (resource, namespace)
        for resource in watched
        for namespace in ((settings.namespaces if resource.namespaced else ()) or everywhere)
    ]


def framework_settings() -> kopf.OperatorSettings:
    """kopf watches and nothing else: it posts no events, scans for no later kinds, stores no progress."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = NoDiffs()
    settings.persistence.progress_storage = NoProgress()
    settings.queueing.exit_timeout = 0.2  # an event handler does no I/O: there is nothing to wait for
    for resource in LABELLED:
        place = (resource.group, resource.version, resource.plural)
        settings.watching.label_selectors[place] = LABEL_DEPLOYMENT
    return settings


async def login(**arguments: Any) -> kopf.ConnectionInfo | None:
    """The same way in as kube.connect takes: in a pod by address, since kopf's name for it needs DNS."""
    account = kopf.login_with_service_account(**arguments)
    server = kube.in_cluster_server(os.environ)
    if account is not None and server is not None:
        return dataclasses.replace(account, server=server)
    return account or kopf.login_with_kubeconfig(**arguments)


async def serve(settings: Settings) -> None:
    """One operator process from start to its signal."""
    async with kube.connect() as api:
        for resource in (resources.TURBODEPLOYMENT, resources.TURBOACCELERATOR, resources.TURBODRAFT):
            if not await api.serves(resource):
                raise MissingKindError(
                    f"The API server does not know {resource.kind}: install the "
                    "CustomResourceDefinitions first (the chart does, unless crds.install is false)."
                )
        for resource, namespace in places(settings, (*WATCHED, *FOLLOWED, resources.POD)):
            # The framework would try for a minute, and say so many times.
            await api.check_list(resource, namespace)
        if settings.apply_catalogue:
            await catalog_sync.apply(api, settings.operator_namespace or api.namespace)
        await Operator(settings, api).run()


class MissingKindError(Exception):
    """A CustomResourceDefinition is not installed; the message says what to do."""


def run(settings: Settings) -> int:
    """Run the operator until it is told to stop; the exit code."""
    logs.configure(settings.log_format, settings.log_level)
    prometheus_client.start_http_server(settings.metrics_port)
    try:
        asyncio.run(serve(settings))
    except (MissingKindError, KubeError) as error:
        log.error("%s", error)
        return 1
    except Exception:
        log.exception("the operator cannot go on")
        return 1
    return 0
