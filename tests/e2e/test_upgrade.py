"""An upgrade of the operator changes no pod that rests, and ends a rollout that the one before has begun."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from turbo_dev.access import Access
from turbo_dev.audit_reader import StatusReader
from turbo_dev.shell import CommandError, run
from turbo_dev.status_coherence import contradictions
from turbo_operator import resources
from turbo_operator.api import crd

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
# An earlier state with the fields and the plan hash of today. Until the first release a change of either may
# roll all pods once: then this is the state after it.
BEFORE = "49c4791"
REPLICASET = resources.Resource("ReplicaSet", "apps", "v1", "replicasets")


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """The operator and the CRDs of that state."""
    archive = tmp_path / "before.tar"
    try:
        run(["git", "-C", str(ROOT), "archive", "-o", str(archive), BEFORE, "operator", "runtime", "crds"])
    except (CommandError, FileNotFoundError) as error:
        pytest.skip(f"no history that holds {BEFORE}: {error}")
    folder = tmp_path / "before"
    folder.mkdir()
    subprocess.run(["tar", "-xf", str(archive), "-C", str(folder)], check=True)
    return folder


@pytest.fixture
def old_crds(cluster: Any, before: Path) -> Iterator[None]:
    """The CRDs of that state; in the end today's are there whatever has happened."""
    for path in sorted((before / "crds").glob("*.yaml")):
        cluster.access.kubectl(
            "apply", "--server-side", "--force-conflicts", "--field-manager=turbo-dev", "-f", str(path)
        )
    cluster.access.wait_for_crds()
    yield
    upgrade_crds(cluster)


def upgrade_crds(cluster: Any) -> None:
    """As `helm upgrade` does with CRDs that are templates."""
    access: Access = cluster.access
    access.apply(*crd.definitions())
    access.wait_for_crds()


class Pods:
    """What of a TurboDeployment must not change while it rests."""

    def __init__(self, cluster: Any, namespace: str, name: str) -> None:
        mine = {"labelSelector": f"serving.turbo.dev/deployment={name}"}

        def listed(resource: resources.Resource) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = cluster.api.send("GET", resource.path(namespace), **mine)["items"]
            return found

        self.pods = {pod["metadata"]["uid"] for pod in listed(resources.POD)}
        self.replica_sets = {each["metadata"]["uid"] for each in listed(REPLICASET)}
        self.templates = {
            each["metadata"]["uid"]: each["spec"]["template"]
            for each in listed(resources.CHILDREN["Deployment"])
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pods) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return repr(vars(self))


def test_an_upgrade_leaves_pods_that_rest_alone_and_ends_a_rollout(
    cluster: Any, before: Path, old_crds: None, statuses: list[StatusReader]
) -> None:
    namespace = cluster.namespace("upgrade")
    changed = {"speculation": {"maxDraftTokens": 4}}
    old = cluster.start(namespace, PYTHONPATH=f"{before / 'operator'}:{before / 'runtime'}")
    for name, replicas in {"single": 1, "pair": 2, "asleep": 1, "moving": 2}.items():
        cluster.create_deployment(namespace, name, replicas=replicas)
        cluster.until_ready(namespace, name, replicas)
    patch(cluster, namespace, "asleep", suspend=True)
    cluster.until(lambda: is_said(cluster, namespace, "asleep", "Available", "Suspended"), "it is suspended")
    cluster.until(lambda: not pods_of(cluster, namespace, "asleep"), "its pods have ended")
    serving = cluster.deployment(namespace, "moving")["status"]["plan"]["hash"]
    cluster.kubelet.refused.add("moving-")  # what comes now does not start
    patch(cluster, namespace, "moving", **changed)
    cluster.until(
        lambda: any(
            not name.startswith(f"moving-{serving}") for name in pods_of(cluster, namespace, "moving")
        ),
        "a pod of the new plan is there",
    )
    old.stop()
    for reader in statuses:
        reader.contradictions()  # what the operator of before has written is read, and not judged
    rested = {name: Pods(cluster, namespace, name) for name in ("single", "pair", "asleep")}

    upgrade_crds(cluster)
    new = cluster.start(namespace)
    # It may have nothing to write where the one before has said all that it knows.
    cluster.until(lambda: reconciled(new) >= {*rested, "moving"}, "today's operator has taken over")
    cluster.kubelet.refused.remove("moving-")
    cluster.until_ready(namespace, "moving", 2)
    moved = cluster.deployment(namespace, "moving")["status"]["plan"]["hash"]
    cluster.until(
        lambda: all(name.startswith(f"moving-{moved}") for name in pods_of(cluster, namespace, "moving")),
        "the pods of the old plan are gone",
    )
    assert moved != serving

    for name, replicas in {"single": 1, "pair": 2}.items():
        body = cluster.until_ready(namespace, name, replicas)
        assert contradictions(body) == []
        assert cluster.condition(body, "Reconciling")["reason"] == "UpToDate"
    asleep = cluster.deployment(namespace, "asleep")
    assert contradictions(asleep) == []
    assert cluster.condition(asleep, "Ready")["reason"] == "Suspended"
    assert {name: Pods(cluster, namespace, name) for name in rested} == rested
    patch(cluster, namespace, "asleep", suspend=False)
    cluster.until_ready(namespace, "asleep")


def patch(cluster: Any, namespace: str, name: str, **spec: Any) -> None:
    cluster.api.patch(resources.TURBODEPLOYMENT, namespace, name, {"spec": spec})


def is_said(cluster: Any, namespace: str, name: str, kind: str, reason: str) -> bool:
    found: str = cluster.condition(cluster.deployment(namespace, name), kind)["reason"]
    return found == reason


def reconciled(operator: Any) -> set[str]:
    """The TurboDeployments whose figures an operator shows: each has been reconciled by it."""
    try:
        figures = httpx.get(operator.metrics).text
    except httpx.ConnectError:  # it has just been started
        return set()
    return set(re.findall(r'^turbo_deployment_desired_replicas{name="([^"]+)"', figures, re.MULTILINE))


def pods_of(cluster: Any, namespace: str, name: str) -> list[str]:
    selector = f"serving.turbo.dev/deployment={name},serving.turbo.dev/role=serving"
    found = cluster.api.send("GET", resources.POD.path(namespace), labelSelector=selector)["items"]
    return [pod["metadata"]["name"] for pod in found]
