"""Following a kind on a real HTTP server: a list in pages, changes in order, a new list where it must be."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from turbo_operator import resources
from turbo_operator.controller import informer
from turbo_operator.controller.informer import Reflector
from turbo_operator.controller.kube import Kube
from turbo_operator.controller.kube import client as kube_client
from turbo_operator.inventory.store import InventoryStore

GPU = "nvidia.com/gpu"
CUT = b"the connection is reset"


def pod(name: str, version: int, gpus: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "team", "uid": name, "resourceVersion": str(version), **more},
        "spec": {
            "nodeName": "n",
            "containers": [{"name": "c", "resources": {"requests": {GPU: str(gpus)}}}],
        },
        "status": {"phase": "Running"},
    }


class Server:
    """Answers lists in pages, and watches with one script after the other; then watches stay silent."""

    def __init__(self, pages: list[list[dict[str, Any]]], *watches: list[dict[str, Any] | bytes]) -> None:
        self.pages = pages
        self.watches = list(watches)
        self.asked: list[dict[str, str]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.asked.append(query)
        if "watch" not in query:
            number = int(query.get("continue", 0))
            token = {"continue": str(number + 1)} if number + 1 < len(self.pages) else {}
            items = self.pages[number]
            return web.json_response({"items": items, "metadata": {"resourceVersion": "10", **token}})
        stream = web.StreamResponse()
        await stream.prepare(request)
        if not self.watches:
            await asyncio.sleep(60)
        for event in self.watches.pop(0):
            if event is CUT:
                assert request.transport is not None
                request.transport.abort()
                break
            text = event if isinstance(event, bytes) else json.dumps(event).encode()
            await stream.write(text + b"\n")
        return stream


@contextlib.asynccontextmanager
async def following(server: Server) -> AsyncIterator[InventoryStore]:
    application = web.Application()
    application.router.add_get("/api/v1/namespaces/team/pods", server.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    inventory = InventoryStore(lambda _: None)
    async with ApiClient(Configuration(host=f"http://127.0.0.1:{port}")) as client:
        reflector = Reflector(Kube(client), inventory, resources.POD, "team")
        task = asyncio.create_task(reflector.run())
        try:
            await asyncio.wait_for(reflector.listed.wait(), 10)
            yield inventory
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await runner.cleanup()


def held(inventory: InventoryStore) -> int:
    inventory.take_stock({}, 0.0)
    return inventory.stock.held.get("n", {}).get(GPU, 0) // 1000


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110  the server asked is another task's
            await asyncio.sleep(0.01)


async def test_every_page_is_read_before_it_counts_as_listed() -> None:
    server = Server([[pod("a", 1)], [pod("b", 2, gpus=2)]])
    async with following(server) as inventory:
        assert held(inventory) == 3


async def test_changes_come_in_their_order_and_the_next_watch_goes_on_from_the_last() -> None:
    long = "x" * 300_000  # one object is one line, and may be longer than any buffer
    first = [
        {"type": "ADDED", "object": pod("b", 11, gpus=4, annotations={"a": long})},
        {"type": "MODIFIED", "object": pod("a", 12, gpus=2)},
        {"type": "DELETED", "object": pod("b", 13)},
        {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "20"}}},
    ]
    server = Server([[pod("a", 1)]], first)
    async with following(server) as inventory:
        await until(lambda: server.asked[-1].get("resourceVersion") == "20")
        assert held(inventory) == 2


async def test_a_version_that_is_too_old_takes_a_new_list_and_what_it_does_not_show_is_gone() -> None:
    expired = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}
    server = Server([[pod("a", 1), pod("b", 2)]], [expired])
    async with following(server) as inventory:
        server.pages = [[pod("a", 1)]]
        await until(lambda: [("watch" in query) for query in server.asked][-3:] == [True, False, True])
        assert held(inventory) == 1


async def test_a_watch_that_has_gone_silent_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in review: a connection that had ended without a word was believed for five minutes."""
    monkeypatch.setattr(kube_client, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(informer, "RETRY_SECONDS", 0.01)
    server = Server([[pod("a", 1)]])
    async with following(server):
        await until(lambda: sum("watch" in query for query in server.asked) > 1)


async def test_an_object_that_cannot_be_read_is_logged_once_and_stops_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Found in review: one ControllerRevision of a stranger ended the process, and the next one."""
    odd = {**pod("odd", 11), "spec": {"nodeName": "n", "containers": "none"}}
    events = [{"type": "ADDED", "object": odd}, {"type": "ADDED", "object": pod("b", 12, gpus=2)}]
    server = Server([[odd, pod("a", 1)]], events)  # type: ignore[arg-type]
    async with following(server) as inventory:
        await until(lambda: held(inventory) == 3)
    assert sum("cannot be read" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    "broken", [CUT, b"<html>Bad Gateway</html>", b'"a string"', b'{"kind": "Pod"}', b'{"type": "ERROR"}']
)
async def test_a_watch_that_breaks_in_whatever_way_is_followed_by_another(
    broken: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(informer, "RETRY_SECONDS", 0.0)
    server = Server([[pod("a", 1)]], [broken], [{"type": "ADDED", "object": pod("b", 12, gpus=2)}])
    async with following(server) as inventory:
        await until(lambda: held(inventory) == 3)


async def test_a_server_that_ends_every_watch_at_once_is_not_asked_without_a_pause() -> None:
    server = Server([[pod("a", 1)]], *([] for _ in range(1000)))
    async with following(server):
        await asyncio.sleep(0.5)
    assert len(server.asked) <= 10
