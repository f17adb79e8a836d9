"""Lists and then watches one kind, for as long as the operator runs.

Not by the framework's watches, since those take a list in one piece, and every pod of a cluster in one piece
is more than the operator's memory.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from turbo_operator.api import LABEL_DEPLOYMENT
from turbo_operator.controller.feed import Feed
from turbo_operator.controller.kube import Kube, KubeError
from turbo_operator.resources import LABELED, REPLICASET, Resource

RETRY_SECONDS = 5.0
PAUSE_SECONDS = 0.5  # after a watch has ended: a server that stops ends each at once
GONE = 410  # the version to go on from is older than what the API server remembers

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Follower:
    """Keeps what `feed` holds of a kind like the cluster, in one namespace or with None in all."""

    api: Kube
    feed: Feed
    resource: Resource
    namespace: str | None

    def __post_init__(self) -> None:
        # A ReplicaSet that its Deployment controls bears the labels of that one's selector.
        is_labeled = self.resource in (*LABELED, REPLICASET)
        self._selectors = (("labelSelector", LABEL_DEPLOYMENT),) if is_labeled else ()
        self.listed = asyncio.Event()

    async def run(self) -> None:
        """Follow until cancelled: a new list after what cannot be gone on from."""
        version: str | None = None
        while True:
            try:
                if version is None:
                    version = await self.list()
                    self.listed.set()
                version = await self._watch(version)
            except KubeError as error:
                if error.status == GONE:
                    version = None
                else:
                    log.warning("%s cannot be watched: %s", self.resource.plural, error.message)
                    await asyncio.sleep(RETRY_SECONDS)
            await asyncio.sleep(PAUSE_SECONDS)

    async def list(self) -> str:
        """List once; the resource version to watch from."""
        kind, version = self.resource.kind, ""
        uids: set[str] = set()
        async for page, version in self.api.pages(self.resource, self.namespace, self._selectors):  # noqa: B007
            for body in page:
                self.feed.put(kind, body)
                uids.add(body["metadata"]["uid"])
        self.feed.keep_only(kind, uids, version, self.namespace)
        return version

    async def _watch(self, version: str) -> str:
        """Watch from a version until the API server ends the watch; the version to go on from."""
        events = self.api.watch(self.resource, self.namespace, version, self._selectors)
        async for change, body in events:
            version = body["metadata"]["resourceVersion"]
            if change == "DELETED":
                self.feed.drop(self.resource.kind, body)
            elif change != "BOOKMARK":
                self.feed.put(self.resource.kind, body)
        return version
