"""`turbo plan --nodes` and `--context`: a plan is held against what a cluster has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from turbo_dev.plan_files import accelerator, answer, deployment, node, nodes_file, pod, written
from turbo_operator.cli import commands


def test_a_plan_must_fit_on_the_nodes_less_what_pods_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(
        tmp_path, accelerator("mine", "0.30"), deployment(accelerators={"allowed": ["mine"]}, replicas=3)
    )
    enough = nodes_file(tmp_path, node("a", 4))
    assert commands.plan(["-f", file, "--nodes", enough, "-o", "json"]) == 0
    assert answer(capsys)["choice"]["accelerator"] == "mine"
    taken = nodes_file(tmp_path, node("a", 4), pod("stranger", "a", 2))
    assert commands.plan(["-f", file, "--nodes", taken, "-o", "json"]) == 2
    assert answer(capsys)["reason"] == "InsufficientCapacity"


def test_a_cordoned_node_takes_no_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, accelerator("mine", "0.30"), deployment(accelerators={"allowed": ["mine"]}))
    nodes = nodes_file(tmp_path, node("a", 4, unschedulable=True))
    assert commands.plan(["-f", file, "--nodes", nodes, "-o", "json"]) == 2
    assert answer(capsys)["reason"] == "InsufficientCapacity"


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([], "there is no object of kind Node"),
        ([{"kind": "Node"}], "item 1 (Node): there is no metadata: write it as kubectl get -o yaml does."),
        (
            [{"kind": "Node", "metadata": {"name": "a"}, "spec": 3}],
            "item 1 (Node): a field is of another kind",
        ),
        (
            [node("a", 8), pod("x", "a", "many")],
            "item 2 (Pod): spec.containers.resources.requests.nvidia.com/gpu: 'many' is no quantity: write",
        ),
        (
            [node("a", "inf")],
            "item 1 (Node): status.allocatable.nvidia.com/gpu: 'inf' is no quantity",
        ),
        (
            [node("a", -1)],
            "item 1 (Node): status.allocatable.nvidia.com/gpu: '-1' is below 0: write 0 or more",
        ),
    ],
)
def test_a_list_without_nodes_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], items: list[dict[str, Any]], said: str
) -> None:
    nodes = nodes_file(tmp_path, *items)
    assert commands.plan(["-f", written(tmp_path, deployment()), "--nodes", nodes]) == 1
    assert said in capsys.readouterr().err


def test_nodes_and_a_context_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.plan(["-f", written(tmp_path, deployment()), "--nodes", "x", "--context", "y"]) == 1
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize("command", [commands.plan, commands.explain], ids=["plan", "explain"])
def test_without_a_kubeconfig_or_its_context_the_sentence_says_so(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-f", written(tmp_path, deployment())] if command is commands.plan else ["chat"]
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert command([*words, "--context", "prod"]) == 1
    assert "there is no kubeconfig at" in capsys.readouterr().err
    config = tmp_path / "config"
    config.write_text(json.dumps({"contexts": [], "clusters": [], "users": [], "current-context": ""}))
    monkeypatch.setenv("KUBECONFIG", str(config))
    assert command([*words, "--context", "prod"]) == 1
    assert "gives no way in by context prod: " in capsys.readouterr().err
    config.write_text("{\n")
    assert command([*words, "--context", "prod"]) == 1
    assert f"the kubeconfig {config} is no YAML: line 2, column 1: " in capsys.readouterr().err
    for cluster, user, said in (
        (
            {"server": "https://a", "certificate-authority-data": "aGVsbG8="},
            {},
            "the certificates of the way in",
        ),
        (
            {"server": "https://a"},
            {"auth-provider": {"name": "gcp"}},
            f"the kubeconfig {config} cannot be used",
        ),
        (
            {"server": "https://a"},
            {"tokenFile": "/nofile"},
            "cannot be used: /nofile: No such file",
        ),
        (None, {}, f"the kubeconfig {config} "),
    ):
        contexts = [{"name": "prod", "context": {"cluster": "a", "user": "a"}}]
        named = {"clusters": [{"name": "a", "cluster": cluster}], "users": [{"name": "a", "user": user}]}
        config.write_text(json.dumps({"contexts": contexts, **named, "current-context": "prod"}))
        assert command([*words, "--context", "prod"]) == 1
        assert said in capsys.readouterr().err
