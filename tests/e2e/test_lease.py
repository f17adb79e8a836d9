"""Two operators share a Lease: one writes, the other takes over, and never do both write."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from turbo_dev.access import kubeconfig
from turbo_operator import resources
from turbo_operator.controller.election import RENEW_SECONDS
from turbo_operator.controller.lease import LeaseHolder, NoLeaseError

pytestmark = pytest.mark.cluster

SYSTEM, LEASE = "turbo-system", "turbo"
OTHER = "turbo-other"  # an account with the same rights, by which the audit log tells the two apart


@pytest.fixture(scope="module")
def other(plane: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kubeconfig of that account."""
    access = plane.access
    access.kubectl("create", "serviceaccount", OTHER, "-n", SYSTEM)
    subject = {"kind": "ServiceAccount", "name": OTHER, "namespace": SYSTEM}
    for kind in ("rolebindings", "clusterrolebindings"):
        found = json.loads(access.kubectl("get", kind, "-A", "-o", "json"))["items"]
        for item in found:
            if any(each.get("name") == "turbo" for each in item.get("subjects", ())):
                item["metadata"] = {
                    "name": f"{item['metadata']['name']}-{OTHER}",
                    "namespace": item["metadata"].get("namespace"),
                }
                item["subjects"] = [subject]
                access.apply(item)
    token = access.kubectl("create", "token", OTHER, "-n", SYSTEM, "--duration=1h").strip()
    path = tmp_path_factory.mktemp("other") / "kubeconfig"
    path.touch(mode=0o600)
    path.write_text(kubeconfig(access.url, access.ca.read_text(), token))
    return path


def holder(cluster: Any) -> str | None:
    lease = cluster.api.get(resources.LEASE, SYSTEM, LEASE)
    return lease["spec"].get("holderIdentity") or None


def replicas(cluster: Any, namespace: str, number: int) -> None:
    cluster.api.patch(resources.TURBODEPLOYMENT, namespace, "chat", {"spec": {"replicas": number}})


def two(cluster: Any, name: str, other: Path) -> tuple[str, Any, Any]:
    """A namespace with a TurboDeployment, its operator, and one that stands by."""
    namespace = cluster.namespace(name)
    settings = {"TURBO_LEASE_NAME": LEASE, "TURBO_OPERATOR_NAMESPACE": SYSTEM}
    first = cluster.start(namespace, **settings)
    cluster.until(lambda: first.leads, "the first one leads", 60)
    second = cluster.start(namespace, KUBECONFIG=str(other), **settings)
    cluster.create_deployment(namespace)
    cluster.until_ready(namespace)
    assert first.leads
    assert not second.leads
    return namespace, first, second


def writers(cluster: Any, namespace: str) -> list[str]:
    """Who wrote in the namespace, of the two, one name for each run of writes."""
    accounts = [event["user"]["username"].rsplit(":", 1)[-1] for event in cluster.all_writes(namespace)]
    ours = [account for account in accounts if account in ("turbo", OTHER)]
    return [account for number, account in enumerate(ours) if ours[number - 1 : number] != [account]]


def test_an_operator_that_is_stopped_hands_over_at_once(cluster: Any, other: Path) -> None:
    namespace, first, second = two(cluster, "lease-stop", other)
    held_by = holder(cluster)
    first.stop()
    assert held_by
    assert holder(cluster) != held_by  # so the second one waits for no Lease to run out
    cluster.until(lambda: second.leads, "the second one leads")
    replicas(cluster, namespace, 2)
    cluster.until_ready(namespace, replicas=2)
    assert writers(cluster, namespace) == ["turbo", OTHER]


def test_an_operator_that_is_killed_is_replaced_when_its_lease_runs_out(cluster: Any, other: Path) -> None:
    namespace, first, second = two(cluster, "lease-kill", other)
    first.kill()
    cluster.until(lambda: second.leads, "the second one leads")
    replicas(cluster, namespace, 2)
    cluster.until_ready(namespace, replicas=2)
    assert writers(cluster, namespace) == ["turbo", OTHER]


def test_an_operator_that_stood_still_writes_nothing_when_it_goes_on(cluster: Any, other: Path) -> None:
    namespace, first, second = two(cluster, "lease-frozen", other)
    first.process.send_signal(signal.SIGSTOP)
    replicas(cluster, namespace, 2)  # it would have to write, and has seen nothing of it
    cluster.until(lambda: second.leads, "the second one leads")
    cluster.until_ready(namespace, replicas=2)
    replicas(cluster, namespace, 1)  # both see it
    first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(60) == 1
    said = first.log.read_text()
    assert "this one ends" in said or "this operator ends" in said
    assert "Traceback" not in said
    cluster.until_ready(namespace)
    assert writers(cluster, namespace) == ["turbo", OTHER]
    assert second.leads


async def test_an_operator_whose_event_loop_is_busy_keeps_its_lease(
    other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(other))
    async with LeaseHolder(SYSTEM, LEASE) as lease, asyncio.timeout(60):
        await lease.acquired()
        busy_until = time.monotonic() + RENEW_SECONDS + 2
        while time.monotonic() < busy_until:
            time.sleep(0.5)  # noqa: ASYNC251  planning for a thousand objects
            assert lease.seconds_left() > 0


async def test_who_may_not_have_a_lease_is_told_and_does_not_wait(
    other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(other))
    async with LeaseHolder(SYSTEM, "of-another-release") as lease, asyncio.timeout(60):
        with pytest.raises(NoLeaseError, match="of-another-release"):
            await lease.acquired()


def test_an_operator_without_rights_to_leases_ends_with_a_sentence(cluster: Any, tmp_path: Path) -> None:
    access, name = cluster.access, "turbo-without-lease"
    access.kubectl("create", "serviceaccount", name, "-n", SYSTEM)
    account = f"--serviceaccount={SYSTEM}:{name}"
    for role in ("turbo", "turbo-accelerators"):
        access.kubectl("create", "clusterrolebinding", f"{name}-{role}", f"--clusterrole={role}", account)
    token = access.kubectl("create", "token", name, "-n", SYSTEM, "--duration=1h").strip()
    path = tmp_path / "kubeconfig"
    path.touch(mode=0o600)
    path.write_text(kubeconfig(access.url, access.ca.read_text(), token))
    settings = {"TURBO_LEASE_NAME": LEASE, "TURBO_OPERATOR_NAMESPACE": SYSTEM}
    operator = cluster.start("default", KUBECONFIG=str(path), **settings)
    assert operator.process.wait(60) == 1
    said = operator.log.read_text()
    assert "leases.coordination.k8s.io" in said
    assert "Traceback" not in said
