"""The embedded node is a real one, and its sandbox leaves nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from turbo_dev.cluster import Cluster, names, of_this_process
from turbo_dev.controlplane import NODE_NAME
from turbo_dev.node import PAUSE_IMAGE
from turbo_dev.shell import run

pytestmark = pytest.mark.node


def traces() -> dict[str, str]:
    """Everything outside the sandbox that a node could have touched."""
    groups = [str(path) for path in Path("/sys/fs/cgroup").rglob("*turbo-*") if path.is_dir()]
    folders = ("/run", "/var/lib", "/var/log", "/opt", "/etc/cni", "/run/netns")
    listing = {
        folder: sorted(path.name for path in Path(folder).iterdir())
        for folder in folders
        if Path(folder).exists()
    }
    return {
        "links": run(["ip", "-brief", "link"]),
        "routes": run(["ip", "route", "show", "table", "all"]),
        "mounts": Path("/proc/self/mounts").read_text(),
        "rules": run(["iptables-save"]),
        "cgroups": "\n".join(groups),
        "folders": str(listing),
    }


@pytest.fixture
def pod(node_cluster: Cluster) -> Iterator[str]:
    name = "lives"
    container = {"name": "pause", "image": PAUSE_IMAGE, "imagePullPolicy": "Never"}
    node_cluster.access.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
        }
    )
    yield name
    node_cluster.access.kubectl("delete", "pod", name)


def test_a_pod_runs_on_the_node_at_an_address_that_the_host_reaches(node_cluster: Cluster, pod: str) -> None:
    node_cluster.access.kubectl("wait", "--for=condition=Ready", f"pod/{pod}", "--timeout=100s")
    status = node_cluster.access.get("pod", pod)["status"]
    assert status["hostIP"] == node_cluster.slot.address
    with pytest.raises(ConnectionRefusedError):  # nothing listens there, and that very pod says so
        socket.create_connection((status["podIP"], 80), timeout=10)


def test_a_second_up_keeps_the_cluster_as_it_is(node_cluster: Cluster) -> None:
    before = node_cluster.access.get("node", NODE_NAME)["metadata"]["uid"]
    node_cluster.up()
    assert node_cluster.access.get("node", NODE_NAME)["metadata"]["uid"] == before


def test_another_cluster_stands_beside_it_and_leaves_nothing_when_it_goes(node_cluster: Cluster) -> None:
    before = traces()
    beside = Cluster(f"beside-{os.getpid()}")
    try:
        beside.up()
        assert beside.slot != node_cluster.slot
        assert traces() != before
    finally:
        assert beside.down()
    assert traces() == before
    assert beside.name not in names()
    assert node_cluster.healthy()
    assert not beside.down()


def test_what_a_run_that_died_has_left_is_removed_by_the_next_one() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, living = Cluster(f"test-{ended.pid}"), Cluster("test-1")
    for each in (dead, living):
        each.directory.mkdir(parents=True)
    try:
        assert of_this_process().name == f"test-{os.getpid()}"
        assert (dead.directory.exists(), living.directory.exists()) == (False, True)
    finally:
        living.down()
