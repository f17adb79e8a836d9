"""`make demo` on a machine of its own, and `make demo-down` after it."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from turbo_dev import demo, sizes
from turbo_dev.cluster import Cluster
from turbo_dev.paths import REPOSITORY

CLUSTER = Cluster(demo.NAME)

pytestmark = [
    pytest.mark.node,
    pytest.mark.model,
    pytest.mark.skipif(not sizes.IS_FULL, reason="three minutes of a cluster: `make test-full` has it"),
    pytest.mark.skipif(CLUSTER.directory.exists(), reason="the demo is up on this machine: it is its user's"),
]


SECONDS = 3600  # a bare machine builds all of it first


def make(target: str) -> str:
    command = ["make", target]
    result = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert result.returncode == 0, f"{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def test_the_demo_answers_alike_with_and_without_drafts_and_scales_and_its_cluster_can_be_removed() -> None:
    try:
        shown = make("demo")
        assert "kubectl get td" in shown
        replicas, failed = re.findall(r"replicas ([\d >-]+); \d+ requests answered, (\d+) failed", shown)[0]
        assert replicas.split(" -> ")[0] == replicas.split(" -> ")[-1] == "1"
        assert "2" in replicas
        assert failed == "0"
        assert "make demo-down" in shown
        assert CLUSTER.healthy()
        assert Path(CLUSTER.access.kubeconfig).name in shown
        _, inside = CLUSTER.enter()[1].split("=")
    finally:
        make("demo-down")
    assert not CLUSTER.directory.exists()
    give_up = time.monotonic() + 10.0  # what has ended is there until its parent has read how
    while (there := Path(f"/proc/{inside}").exists()) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert not there
