"""`turbo events` on a real cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest

from turbo_operator.cli import commands

pytestmark = pytest.mark.cluster


def test_events_of_the_object_and_of_its_pods_are_in_one_list(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace = cluster.namespace("events")
    monkeypatch.setenv("KUBECONFIG", str(cluster.access.kubeconfig))
    cluster.start(namespace)
    for name in ("chat", "chat-eu"):
        cluster.create_deployment(namespace, name)
        cluster.until_ready(namespace, name)
    assert commands.events(["none", "-n", namespace]) == 1
    assert capsys.readouterr().err == (
        f"turbo events: there is no TurboDeployment none in namespace {namespace}.\n"
    )

    def found(name: str) -> list[dict[str, Any]]:
        assert commands.events([name, "-n", namespace, "-o", "json"]) == 0
        return list(json.loads(capsys.readouterr().out))

    cluster.until(lambda: {each["kind"] for each in found("chat")} >= {"TurboDeployment", "Pod"}, "both")
    events = found("chat")
    assert not any(each["name"].startswith("chat-eu") for each in events)
    assert [each["lastSeen"] for each in events if each["kind"] == "TurboDeployment"]
    assert commands.events(["chat", "-n", namespace]) == 0
    assert "turbodeployment/chat " in capsys.readouterr().out
    cluster.access.kubectl("delete", "td", "chat", "-n", namespace, "--wait")
    assert found("chat"), "what happened before is still there"
