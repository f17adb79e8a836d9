"""Shipped accelerators on a real API server: a deleted one stays away, what is missing otherwise comes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from turbo_operator import resources
from turbo_operator.catalog import shipped_objects
from turbo_operator.controller.catalog_sync import MEMORY_NAME as MEMORY

pytestmark = pytest.mark.cluster

SYSTEM = "turbo-system"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
SHIPPED = {entry["metadata"]["name"] for entry in shipped_objects()}


@contextlib.contextmanager
def without(cluster: Any, path: str) -> Iterator[dict[str, Any]]:
    """An object of the cluster is gone for a while."""
    kept = cluster.api.send("GET", path)
    cluster.api.send("DELETE", path)
    del kept["metadata"]["resourceVersion"], kept["metadata"]["uid"]
    try:
        yield kept
    finally:
        cluster.api.send("POST", path.rpartition("/")[0], kept)


@pytest.fixture
def namespace(cluster: Any, request: pytest.FixtureRequest) -> Iterator[str]:
    """The chart's rights as with `watchNamespaces`: of ConfigMaps elsewhere only the one by its name.

    What was ever shipped is forgotten, and every shipped accelerator but the one of the fixture is gone.
    """
    name: str = cluster.namespace(request.node.name[:40].replace("_", "-").strip("-"))
    cluster.access.kubectl("delete", "configmap", MEMORY, "-n", SYSTEM, "--ignore-not-found")
    cluster.access.kubectl("delete", "ta", "--ignore-not-found", *sorted(SHIPPED - {"cpu"}))
    with without(cluster, f"{RBAC}/clusterrolebindings/turbo") as binding:
        role = {"roleRef": binding["roleRef"], "subjects": binding["subjects"]}
        meta = {"name": "turbo", "namespace": name}
        cluster.api.send("POST", f"{RBAC}/namespaces/{name}/rolebindings", {"metadata": meta, **role})
        yield name


def start_and_stop(cluster: Any, namespace: str) -> str:
    """What the operator logs from its start until it has written what it ships."""
    operator = cluster.start(namespace, TURBO_APPLY_CATALOG="true", TURBO_OPERATOR_NAMESPACE=SYSTEM)
    size = operator.log.stat().st_size
    done = "the shipped accelerators are known"
    cluster.until(lambda: done in operator.log.read_bytes()[size:].decode(), "the accelerators are written")
    operator.stop()
    text: str = operator.log.read_bytes()[size:].decode()
    return text


def accelerators(cluster: Any) -> set[str]:
    return {item["metadata"]["name"] for item in cluster.api.list(resources.TURBOACCELERATOR, "")}


def test_a_shipped_accelerator_that_was_deleted_stays_away_until_it_is_asked_for(
    cluster: Any, namespace: str
) -> None:
    start_and_stop(cluster, namespace)
    assert accelerators(cluster) >= SHIPPED
    memory = cluster.access.get("configmap", MEMORY, "-n", SYSTEM)
    assert set(memory["data"]) == SHIPPED
    cluster.access.kubectl("delete", "ta", "h100", "l4")
    log = start_and_stop(cluster, namespace)
    assert SHIPPED - accelerators(cluster) == {"h100", "l4"}
    assert "TurboAccelerator written" not in log
    assert log.count("TurboAccelerator stays deleted") == 2
    unchanged = cluster.access.get("configmap", MEMORY, "-n", SYSTEM)
    assert unchanged["metadata"]["resourceVersion"] == memory["metadata"]["resourceVersion"]

    # Without its entry an accelerator is one that was never shipped, as with a version that brings it.
    entry = json.dumps([{"op": "remove", "path": "/data/l4"}])
    cluster.access.kubectl("patch", "configmap", MEMORY, "-n", SYSTEM, "--type=json", f"--patch={entry}")
    start_and_stop(cluster, namespace)
    assert SHIPPED - accelerators(cluster) == {"h100"}
    assert set(cluster.access.get("configmap", MEMORY, "-n", SYSTEM)["data"]) == SHIPPED

    cluster.access.kubectl("delete", "configmap", MEMORY, "-n", SYSTEM)
    start_and_stop(cluster, namespace)
    assert accelerators(cluster) >= SHIPPED


def test_without_the_right_to_remember_everything_is_shipped_and_the_log_says_so(
    cluster: Any, namespace: str
) -> None:
    with without(cluster, f"{RBAC}/namespaces/{SYSTEM}/rolebindings/turbo-shipped"):
        for _ in range(2):
            cluster.access.kubectl("delete", "ta", "h100", "--ignore-not-found")
            log = start_and_stop(cluster, namespace)
            assert accelerators(cluster) >= SHIPPED
            assert 'cannot list resource "configmaps"' in log
            assert "deleted TurboAccelerators come back" in log
