"""A cluster that cannot be asked is told apart: no answer, no right, no CustomResourceDefinition."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from turbo_operator import api, resources
from turbo_operator.catalog import shipped_objects
from turbo_operator.cli import cluster_reader, commands
from turbo_operator.controller import informer
from turbo_operator.controller.cache.store import Key


@contextmanager
def api_server(status: int, body: dict[str, Any]) -> Iterator[str]:
    """Answers every request alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def explained(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What `turbo explain chat` refuses with."""
    config = {
        "clusters": [{"name": "a", "cluster": {"server": url}}],
        "users": [{"name": "a", "user": {}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "current-context": "a",
    }
    path = folder / "config"
    path.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert commands.explain(["chat"]) == 1
    return capsys.readouterr().err


def test_a_cluster_without_our_kinds_is_told_to_install_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with api_server(404, {"kind": "Status", "message": "the server could not find it"}) as url:
        said = explained(url, tmp_path, monkeypatch, capsys)
    assert said == (
        "turbo explain: the cluster does not know TurboDeployment: install the chart, or its CRDs, first.\n"
    )


def test_a_refusal_is_told_in_the_api_servers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with api_server(403, {"kind": "Status", "message": "nodes is forbidden"}) as url:
        assert explained(url, tmp_path, monkeypatch, capsys) == "turbo explain: nodes is forbidden.\n"


def test_a_cluster_that_does_not_answer_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        said = explained(f"http://127.0.0.1:{taken.getsockname()[1]}", tmp_path, monkeypatch, capsys)
        port = taken.getsockname()[1]
    assert said == (
        "turbo explain: the API server did not answer: "
        f"no connection to 127.0.0.1:{port} (Connection refused).\n"
    )


class Listed:
    """An API server that only lists."""

    namespace = "team"

    def __init__(self, *bodies: dict[str, Any]) -> None:
        self.bodies = [
            {**body, "metadata": {"uid": f"u{number}", "resourceVersion": "1", **body["metadata"]}}
            for number, body in enumerate(bodies)
        ]
        self.asked: list[tuple[str, str | None, object]] = []

    async def serves(self, _: resources.Resource) -> bool:
        return True

    async def list_all(
        self, resource: resources.Resource, namespace: str | None, selectors: object = ()
    ) -> list[dict[str, Any]]:
        self.asked.append((resource.kind, namespace, selectors))
        return [
            body
            for body in self.bodies
            if body["kind"] == resource.kind and body["metadata"].get("namespace") == namespace
        ]


def test_a_cluster_is_listed_once_and_what_cannot_be_read_is_left_out_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    h100 = next(body for body in shipped_objects() if body["metadata"]["name"] == "h100")
    odd = {**h100, "metadata": {"name": "odd"}, "spec": {"max": -1}}
    place = {"namespace": "team"}
    td = {
        "apiVersion": api.API_VERSION,
        "kind": api.TURBODEPLOYMENT,
        "metadata": {"name": "chat", **place},
        "spec": {"model": {"uri": "hf://Qwen/Qwen3-8B"}},
    }
    owner = {"kind": api.TURBODEPLOYMENT, "name": "chat", "uid": "u2", "controller": True}
    child = {"kind": "ConfigMap", "metadata": {"name": "chat-model", **place, "ownerReferences": [owner]}}
    node = {
        "kind": "Node",
        "metadata": {"name": "n1", "labels": h100["spec"]["nodeSelector"]},
        "status": {
            "allocatable": {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": "8"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    listed = Listed(h100, odd, td, child, node)

    @asynccontextmanager
    async def connect(_: str | None) -> AsyncIterator[Listed]:
        yield listed

    monkeypatch.setattr(cluster_reader.kube, "connect", connect)
    with monkeypatch.context() as bare:
        bare.setattr(logging.getLogger(), "handlers", [])
        cluster = cluster_reader.read_cluster(None, [None, "team"])
    assert not capsys.readouterr().err
    assert informer.log.isEnabledFor(logging.WARNING)
    assert len(listed.asked) == len({kind for kind, _, _ in listed.asked})
    assert ("ReplicaSet", "team", (("labelSelector", api.LABEL_DEPLOYMENT),)) in listed.asked
    assert ("LeaderWorkerSet", "team", ()) in listed.asked
    assert set(cluster.accelerators) == {"h100", "odd"}
    key = Key("team", "chat")
    assert cluster.cache.deployments.get(key) is not None
    snapshot = cluster.snapshot(key, api.parse(listed.bodies[2]), 0.0)
    assert set(snapshot.accelerators) == {"h100"}
    assert [view.name for view in snapshot.children] == ["chat-model"]
    assert snapshot.supply is not None
    assert [row.free for row in snapshot.supply["h100"].nodes] == [8]
