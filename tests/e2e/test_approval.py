"""`turbo approve` on a real API server: nothing of a plan is made before it, and what serves goes on."""

from __future__ import annotations

from typing import Any

import pytest

from turbo_operator import resources
from turbo_operator.cli import commands

pytestmark = pytest.mark.cluster

DEPLOYMENT = resources.CHILDREN["Deployment"]


def test_plans_wait_for_somebody_who_approves_them(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace = cluster.namespace("approval")
    monkeypatch.setenv("KUBECONFIG", str(cluster.access.kubeconfig))

    def approve(*more: str) -> tuple[int, str]:
        status = commands.approve(["chat", "-n", namespace, *more])
        said = capsys.readouterr()
        return status, (said.out + said.err).strip()

    def waits() -> Any:
        body = cluster.deployment(namespace)
        is_seen = body.get("status", {}).get("observedGeneration") == body["metadata"]["generation"]
        return is_seen and body["status"].get("pendingPlan")

    def variants() -> list[str]:
        return [item["metadata"]["name"] for item in cluster.api.list(DEPLOYMENT, namespace)]

    operator = cluster.start(namespace)
    cluster.create_deployment(namespace, planPolicy={"apply": "Manual"})
    first = cluster.until(waits, "the first plan waits")["hash"]
    assert variants() == []
    assert commands.approve(["none", "-n", namespace]) == 1
    assert capsys.readouterr().err == (
        f"turbo approve: there is no TurboDeployment none in namespace {namespace}.\n"
    )
    status, said = approve("--plan=v2ffffffff")
    assert (status, "waits, and not v2ffffffff" in said) == (1, True)
    status, said = approve()
    assert (status, said.startswith(f"Approved plan {first}: 1 x 1 cpu, Turbo, drafts ")) == (0, True), said
    cluster.until_ready(namespace)
    assert approve() == (0, f"Nothing waits for approval: plan {first} serves.")

    other = {"spec": {"podTemplate": {"spec": {"env": [{"name": "LOG", "value": "a"}]}}}}
    cluster.api.patch(resources.TURBODEPLOYMENT, namespace, "chat", other)
    second = cluster.until(waits, "the second plan waits")["hash"]
    assert (second != first, variants()) == (True, [f"chat-{first}"])
    operator.stop()
    cluster.start(namespace)  # which remembers nothing
    cluster.until(waits, "it still waits")
    assert variants() == [f"chat-{first}"]
    assert approve(f"--plan={second}")[0] == 0
    cluster.until_ready(namespace)
    cluster.until(lambda: variants() == [f"chat-{second}"], "the second plan has taken over")
    body = cluster.deployment(namespace)
    assert "pendingPlan" not in body["status"]
    assert body["status"]["servingPlan"]["hash"] == second

    cluster.api.patch(
        resources.TURBODEPLOYMENT, namespace, "chat", {"spec": {"planPolicy": {"apply": "Auto"}}}
    )
    status, said = approve()
    assert (status, "is Auto: its plans take effect by themselves" in said) == (1, True)
