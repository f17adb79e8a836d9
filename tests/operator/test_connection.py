"""The way in to an API server: a token goes there as it is, by the environment's proxy or not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from turbo_operator.controller.kube import connect
from turbo_operator.resources import POD


@asynccontextmanager
async def api_server() -> AsyncIterator[tuple[int, list[tuple[str, str | None]]]]:
    """Serve an empty list of everything: the port, and of each request host and Authorization."""
    seen: list[tuple[str, str | None]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.host, request.headers.get("Authorization")))
        return web.json_response({"items": [], "metadata": {"resourceVersion": "1"}})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        assert server.port is not None
        yield server.port, seen


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that KUBECONFIG names, and no proxy in the environment."""
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    return tmp_path / "kubeconfig"


def write(kubeconfig: Path, server: str) -> None:
    named = {
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    }
    kubeconfig.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "x", **named}))


async def find_pod(kubeconfig: Path, server: str) -> None:
    write(kubeconfig, server)
    async with connect("x") as api:
        assert await api.find(POD, "team", "chat") is None


async def test_a_password_in_netrc_does_not_stand_in_the_tokens_way(
    kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by profile: each request read ~/.netrc in a thread, and failed where it names the host."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with api_server() as (port, seen):
        await find_pod(kubeconfig, f"http://127.0.0.1:{port}")
    assert seen == [(f"127.0.0.1:{port}", "Bearer secret")]


async def test_a_proxy_of_the_environment_is_used(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with api_server() as (port, seen):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        await find_pod(kubeconfig, "http://api.test")
    assert seen == [("api.test", "Bearer secret")]


async def test_a_host_that_no_proxy_names_is_reached_without_the_proxy(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with api_server() as (port, seen):
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        await find_pod(kubeconfig, f"http://127.0.0.1:{port}")
    assert seen == [(f"127.0.0.1:{port}", "Bearer secret")]
