"""The same answer in the status, from `turbo explain`, and from `turbo plan` on files of kubectl's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from turbo_dev.fakenodes import gpu_node
from turbo_operator import resources
from turbo_operator.api import API_VERSION
from turbo_operator.cli import commands

pytestmark = pytest.mark.cluster

GPU = "nvidia.com/gpu"
CHOSEN = ("engine", "accelerator", "capacityType", "tensor", "nodes", "method", "maxDraftTokens")
REJECTED = ("engine", "accelerator", "capacityType", "tensor", "method", "reason", "message")
MODEL = {"uri": "hf://maker/model"}


def accelerator(name: str, price: str, bandwidth: str) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "TurboAccelerator",
        "metadata": {"name": name},
        "spec": {
            "resourceName": GPU,
            "memory": "24Gi",
            "memoryBandwidthGBps": bandwidth,
            "tflops": {"bf16": "100"},
            "nodeSelector": {f"{GPU}.product": name},
            "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
            "pricing": {"perAcceleratorHour": {"onDemand": price}, "source": "set by the test"},
        },
    }


@pytest.fixture
def ask(gpu_cluster: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command as the administrator; its exit status and its one answer, or what it refused with."""
    monkeypatch.setenv("KUBECONFIG", str(gpu_cluster.access.kubeconfig))

    def run(command: Any, *words: str) -> tuple[int, Any]:
        status = command([*words, "-o", "json"])
        shown = capsys.readouterr()
        return status, json.loads(shown.out)[0] if shown.out else shown.err

    return run


def test_status_explain_and_a_plan_from_files_agree(gpu_cluster: Any, ask: Any, tmp_path: Path) -> None:
    namespace = gpu_cluster.namespace("explained")
    gpu_cluster.access.apply(accelerator("few", "0.50", "300"), accelerator("many", "1.50", "900"))
    gpu_cluster.add_nodes(gpu_node("few-0", "few", 1), gpu_node("many-0", "many", 4))
    gpu_cluster.start(namespace)
    wanted = {"requestsPerSecond": "2", "inputTokens": {"mean": 400}}
    gpu_cluster.create_deployment(
        namespace,
        model=MODEL,
        accelerators={"allowed": ["few", "many"]},
        scaling={"mode": "External"},
        replicas=2,
        workload=wanted,
    )
    gpu_cluster.until_ready(namespace, replicas=2)
    told = gpu_cluster.deployment(namespace)["status"]["plan"]
    assert told["accelerator"] == "many", "there is one few only, and two are asked for"

    status, live = ask(commands.explain, "chat", "-n", namespace)
    assert status == 0
    assert same_as(told, live)

    def saved(name: str, *words: str) -> str:
        path = tmp_path / name
        path.write_text(gpu_cluster.access.kubectl("get", *words, "-o", "yaml"))
        return str(path)

    facts = gpu_cluster.access.kubectl(
        "get", "cm", "chat-model", "-n", namespace, "-o", r"jsonpath={.data.facts\.json}"
    )
    (tmp_path / "facts.json").write_text(facts)
    file = saved("td.yaml", "td", "chat", "-n", namespace)
    status, offline = ask(
        commands.plan,
        *("-f", file, "--model", str(tmp_path / "facts.json")),
        *("--catalog", saved("catalog.yaml", "turboaccelerators")),
        *("--nodes", saved("nodes.yaml", "nodes,pods,resourcequotas", "-A")),
    )
    assert status == 0
    assert {**offline, "model": live["model"]} == live

    status, against = ask(commands.plan, "-f", file, "--context", "turbo")
    assert (status, against) == (0, live)


def same_as(told: dict[str, Any], live: dict[str, Any]) -> bool:
    """Whether a status' plan and an answer say the same, as far as the status says it."""
    chosen = {key: live["choice"].get(key) for key in CHOSEN}
    rejected = [{key: row[key] for key in REJECTED} for row in live["rejected"]]
    assert {key: told.get(key) for key in CHOSEN} == chosen
    assert [{key: row[key] for key in REJECTED} for row in told["rejected"]] == rejected[
        : len(told["rejected"])
    ]
    assert (told["reason"], told["message"], told["replicas"]) == (
        live["reason"],
        live["message"],
        live["replicas"],
    )
    assert told["predicted"]["costPerHour"] == live["choice"]["costPerHour"]
    assert told["predicted"]["provenance"] == live["choice"]["provenance"]
    return True


def test_what_cannot_be_explained_is_refused_in_a_sentence(gpu_cluster: Any, ask: Any) -> None:
    namespace = gpu_cluster.namespace("unexplained")
    assert ask(commands.explain, "chat", "-n", namespace) == (
        1,
        f"turbo explain: there is no TurboDeployment chat in namespace {namespace}.\n",
    )
    gpu_cluster.create_deployment(namespace)
    status, said = ask(commands.explain, "chat", "-n", namespace)
    assert status == 1
    assert "its model is unknown" in said


def test_a_file_is_planned_against_the_cluster_before_it_is_applied(
    gpu_cluster: Any, ask: Any, tmp_path: Path
) -> None:
    namespace = gpu_cluster.namespace("not-applied")
    gpu_cluster.access.apply(accelerator("lonely", "0.50", "300"))
    gpu_cluster.add_nodes(gpu_node("lonely-0", "lonely", 1))
    path = tmp_path / "td.yaml"
    for replicas, expected in ((1, 0), (2, 2)):
        body = {
            "apiVersion": API_VERSION,
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": namespace},
            "spec": {
                "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
                "accelerators": {"allowed": ["lonely"]},
                "replicas": replicas,
            },
        }
        path.write_text(json.dumps(body))
        status, found = ask(commands.plan, "-f", str(path), "--context", "turbo")
        assert status == expected, found
    assert found["reason"] == "InsufficientCapacity"
    assert gpu_cluster.api.get(resources.TURBODEPLOYMENT, namespace, "chat") is None
