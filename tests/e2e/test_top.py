"""`turbo top` and `turbo cost` on a real cluster, whose operator has written the statuses."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from turbo_operator.cli import commands

pytestmark = pytest.mark.cluster


def test_top_shows_the_status_of_each_object_of_a_namespace(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace = cluster.namespace("top")
    monkeypatch.setenv("KUBECONFIG", str(cluster.access.kubeconfig))
    assert commands.top(["-n", namespace]) == 0
    assert capsys.readouterr().out == f"There is no TurboDeployment in namespace {namespace}.\n"
    cluster.start(namespace)
    for name in ("chat", "more"):
        cluster.create_deployment(namespace, name)
        cluster.until_ready(namespace, name)
    assert commands.top(["-n", namespace, "-o", "json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    status = cluster.deployment(namespace)["status"]
    assert (first["name"], second["name"]) == ("chat", "more")
    assert first["readyReplicas"] == first["desiredReplicas"] == 1
    assert first["costPerHour"] == status["observed"]["costPerHour"]
    assert first["plan"].split() == [
        status["servingPlan"][key] for key in ("engine", "accelerator", "method")
    ]
    assert commands.top(["-A"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].split()[:3] == ["namespace", "name", "ready"]
    assert "together" in shown

    assert commands.cost(["-n", namespace, "-o", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    paid = sum(Decimal(each["costPerHour"]) for each in (first, second))
    assert (row["namespace"], row["deployments"], Decimal(row["usedPerHour"])) == (namespace, 2, paid)
    assert (row["idlePerHour"], row["trainingPerHour"]) == ("0.00", "0.00")
    assert commands.cost(["-A", "--by", "model"]) == 0
    assert "pvc://models/smollm2.gguf" in capsys.readouterr().out
