"""How many pods of a TurboDeployment there were at once: from a watch, which loses nothing in between."""

from __future__ import annotations

import json
import threading
from types import TracebackType
from typing import Any, Self

from turbo_operator import resources
from turbo_operator.api import LABEL_DEPLOYMENT, LABEL_ROLE, ROLE_SERVING
from turbo_operator.rollout.variants import ENDED

from .access import Access
from .api import Api

_STREAM_SECONDS = "3"  # after so long the API server ends a watch; the next one goes on from there


class PodHistory:
    """Serving pods, for as long as the context lasts: also those that end, until their containers have.

    After that scheduler and kubelet give their places away, though the objects are there for a moment.
    """

    def __init__(self, access: Access, namespace: str, name: str) -> None:
        """Nothing is watched before the context is entered."""
        self._api = Api(access)
        self._path = resources.POD.path(namespace)
        self._selector = f"{LABEL_DEPLOYMENT}={name},{LABEL_ROLE}={ROLE_SERVING}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._there: set[str] = set()
        self._version = ""
        self.sizes: list[int] = []  # after each event
        self.error: Exception | None = None

    def __enter__(self) -> Self:
        listed = self._api.send("GET", self._path, labelSelector=self._selector)
        for pod in listed["items"]:
            self._take({"type": "ADDED", "object": pod})
        self._version = listed["metadata"]["resourceVersion"]
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._api.client.close()
        if self.error is not None and kind is None:
            raise self.error

    def _watch(self) -> None:
        query = {"labelSelector": self._selector, "watch": "true", "timeoutSeconds": _STREAM_SECONDS}
        query["allowWatchBookmarks"] = "true"
        try:
            while not self._stop.is_set():
                query["resourceVersion"] = self._version
                with self._api.client.stream("GET", self._path, params=query) as answer:
                    for line in answer.iter_lines():
                        self._take(json.loads(line))
        except Exception as error:  # raised where the context ends
            self.error = error

    def _take(self, event: dict[str, Any]) -> None:
        if event["type"] == "ERROR":
            raise ValueError(f"the watch of pods ended: {event['object']}")
        meta = event["object"]["metadata"]
        self._version = meta["resourceVersion"]
        if event["type"] == "BOOKMARK":
            return
        if event["type"] == "DELETED" or event["object"]["status"]["phase"] in ENDED:
            self._there.discard(meta["uid"])
        else:
            self._there.add(meta["uid"])
        self.sizes.append(len(self._there))
