"""A cluster that cannot be asked is told apart: no answer, no right, no CustomResourceDefinition."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from turbo_operator.cli import commands


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
