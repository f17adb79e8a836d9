"""The only writer to the Kubernetes API: server-side apply, prune, status; and the reads no watch answers.

One field manager, forced on the fields that we own.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient
from pydantic_core import from_json  # twice as fast as json, which is much of the work

from turbo_operator import metrics
from turbo_operator.api import FIELD_MANAGER
from turbo_operator.controller.kube.errors import (
    ConflictError,
    GoneError,
    KubeError,
    NotLeadingError,
    error_of,
)
from turbo_operator.resources import Resource

REQUEST_SECONDS = 30.0
SILENCE_SECONDS = 150.0  # of a watch: bookmarks come about every minute
WATCH_SECONDS = 300  # after which the API server ends a watch, and the next goes on from there
LIST_CHUNK = 500

Query = Sequence[tuple[str, str]]

_MANAGER = ("fieldManager", FIELD_MANAGER)
_APPLY = "application/apply-patch+yaml"  # JSON is YAML
_MERGE = "application/merge-patch+json"


class Kube:
    """A connection to one API server. Raises KubeError and its children, and nothing else of the network.

    `namespace` is the one that the way in names for whoever names none.
    """

    def __init__(
        self, client: ApiClient, namespace: str = "default", seconds_left: Callable[[], float] | None = None
    ) -> None:
        self._client = client
        self.namespace = namespace
        self._seconds_left = seconds_left

    def fenced(self, seconds_left: Callable[[], float]) -> Kube:
        """Return the same connection, whose writes take no longer than so many seconds from when they begin;
        NotLeadingError where none are left.
        """
        return Kube(self._client, self.namespace, seconds_left)

    async def apply(
        self, resource: Resource, wanted: Mapping[str, Any], subresource: str = "", *, force: bool = True
    ) -> dict[str, Any]:
        """Apply an object server-side, or a subresource of it; returns it as it stands then."""
        path = resource.path(wanted["metadata"].get("namespace"), wanted["metadata"]["name"], subresource)
        query = [_MANAGER, ("force", "true" if force else "false")]
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **wanted}
        return await self._request("PATCH", resource, path, query, body=body, content=_APPLY)

    async def create(self, resource: Resource, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object; returns it. ConflictError where there is one of its name."""
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        return await self._request("POST", resource, resource.path(body["metadata"]["namespace"]), body=body)

    async def apply_status(self, resource: Resource, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the status of `wanted` alone; returns the object as it stands then."""
        return await self.apply(resource, wanted, "status")

    async def replace(self, resource: Resource, body: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the object at the resource version of `body`; returns it as it stands then.

        Unlike an apply this removes what others have added. ConflictError where it has changed since.
        """
        path = resource.path(body["metadata"]["namespace"], body["metadata"]["name"])
        return await self._request("PUT", resource, path, [_MANAGER], body=body)

    async def merge(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch: Mapping[str, Any],
        manager: str = FIELD_MANAGER,
    ) -> dict[str, Any]:
        """Apply a JSON merge patch; ConflictError where the object has changed since the version in it."""
        path, query = resource.path(namespace, name), [("fieldManager", manager)]
        return await self._request("PATCH", resource, path, query, body=patch, content=_MERGE)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> dict[str, Any] | None:
        """Delete this very object, its dependants in the background; one that is gone already is no error.

        The object as it stands then where a finalizer of somebody's holds it; None where it is gone.
        """
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            there = await self._request("DELETE", resource, resource.path(namespace, name), body=options)
        except (GoneError, ConflictError):  # gone, or another object of the same name: not the one to delete
            return None
        return there if there["kind"] == resource.kind else None

    async def find(self, resource: Resource, namespace: str, name: str) -> dict[str, Any] | None:
        """Find an object by name. A list of one: that needs no right beyond those of a watch."""
        items = await self.list_all(resource, namespace, [("fieldSelector", f"metadata.name={name}")])
        return items[0] if items else None

    async def list_all(
        self, resource: Resource, namespace: str | None, selectors: Query = ()
    ) -> list[dict[str, Any]]:
        """List a kind in one namespace or in all."""
        return [item async for page, _ in self.pages(resource, namespace, selectors) for item in page]

    async def pages(
        self, resource: Resource, namespace: str | None, selectors: Query = ()
    ) -> AsyncIterator[tuple[list[dict[str, Any]], str]]:
        """List a few hundred at a time, each page with the resource version that the whole list shows."""
        query = [("limit", str(LIST_CHUNK)), *selectors]
        page: list[tuple[str, str]] = []
        # Items of a list come without the two fields that name their kind.
        kind = {"apiVersion": resource.api_version, "kind": resource.kind}
        while True:
            answer = await self._request("GET", resource, resource.path(namespace), [*query, *page])
            yield [{**kind, **item} for item in answer["items"]], answer["metadata"]["resourceVersion"]
            token = answer["metadata"].get("continue")
            if not token:
                return
            page = [("continue", token)]

    async def watch(
        self, resource: Resource, namespace: str | None, version: str, selectors: Query = ()
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield changes after `version`: ADDED, MODIFIED, DELETED or BOOKMARK, and the object.

        KubeError with status 410 where `version` is too old to go on from: then it takes a new list.
        """
        query = [
            ("watch", "1"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", version),
            ("timeoutSeconds", str(WATCH_SECONDS)),
            *selectors,
        ]
        with _broken("the watch was cut off"):
            path, seconds = resource.path(namespace), WATCH_SECONDS + REQUEST_SECONDS
            answer = await self._send("GET", path, query, seconds=seconds)
            async with answer.response as response:
                if response.status >= 400:
                    raise error_of(response.status, await response.read())
                async for line in _lines(response):
                    yield _event(line)

    async def check_list(self, resource: Resource, namespace: str | None) -> None:
        """Raise RefusedError, in the API server's words, where we may not list."""
        await self._request("GET", resource, resource.path(namespace), [("limit", "1")])

    async def serves(self, resource: Resource) -> bool:
        """Whether the API server knows the kind (a CRD may be missing)."""
        try:
            answer = await self._request("GET", resource, f"/apis/{resource.api_version}")
        except GoneError:
            return False
        return any(entry["name"] == resource.plural for entry in answer["resources"])

    async def _request(
        self, method: str, resource: Resource, path: str, query: Query = (), **rest: Any
    ) -> dict[str, Any]:
        if self._seconds_left is not None and method != "GET":
            left = self._seconds_left()
            if left <= 0:
                raise NotLeadingError
            rest["seconds"] = min(REQUEST_SECONDS, left)
        code = "none"
        try:
            with _broken("the API server did not answer"):
                response = await self._send(method, path, query, **rest)
                text = await response.read()
                code = str(response.status)
        finally:
            metrics.API_REQUESTS.labels(method, resource.plural, code).inc()
        if response.status >= 400:
            raise error_of(response.status, text)
        with _broken("what answered is no API server"):
            return _object(from_json(text))

    async def _send(
        self,
        method: str,
        path: str,
        query: Query,
        *,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
        seconds: float = REQUEST_SECONDS,
    ) -> Any:
        request = await self._client.param_serialize(
            method,
            path,
            query_params=list(query),
            header_params={"Accept": "application/json", "Content-Type": content},
            body=None if body is None else dict(body),
            auth_settings=["BearerToken"],
        )
        return await self._client.call_api(*request, _request_timeout=seconds)


@contextmanager
def _broken(what: str) -> Iterator[None]:
    """Turn whatever a network, a token's file or a proxy's page may raise into an error that time mends."""
    try:
        yield
    except (aiohttp.ClientError, OSError, ValueError) as error:  # of OSError are time-outs and resets
        raise KubeError(0, "Unreachable", f"{what}: {_why(error)}") from error


def _why(error: Exception) -> str:
    """Describe a network's exception in words; one without any of its own by its type."""
    if isinstance(error, aiohttp.ClientConnectorError):
        number, why = error.os_error.errno or 0, error.os_error.strerror or str(error.os_error)
        if number > 0 and not isinstance(error.os_error, ssl.SSLError):
            why = os.strerror(number)  # asyncio writes "Connect call failed" over it
        return f"no connection to {error.host}:{error.port} ({why})"
    if isinstance(error, TimeoutError):
        return "nothing came in time"
    return str(error) or type(error).__name__


def _event(line: bytes) -> tuple[str, dict[str, Any]]:
    """Parse one line of a watch; ValueError for what is none, the API server's error where it is one."""
    event = _object(from_json(line))
    kind, what = event.get("type"), _object(event.get("object"))
    if kind == "ERROR":
        raise error_of(what.get("code", 0), json.dumps(what).encode())
    if not isinstance(kind, str) or "resourceVersion" not in _object(what.get("metadata")):
        raise ValueError(f"no event of a watch: {line[:100]!r}")
    return kind, what


def _object(document: object) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object, got {type(document).__name__}")
    return document


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the lines of a body, however long: one object is one line."""
    rest = b""
    while True:
        async with asyncio.timeout(SILENCE_SECONDS):  # a connection may end without a word
            chunk = await response.content.readany()
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
