"""A release on a real API server: manifests are accepted; install, upgrade and uninstall do what they say."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from turbo_dev import binaries
from turbo_dev.access import Access
from turbo_dev.release import UNUSED_IMAGES, list_foreign_values, recover
from turbo_dev.shell import CommandError

pytestmark = pytest.mark.cluster

Render = Callable[..., list[dict[str, Any]]]
SYSTEM = "turbo-system"
MODEL = {
    "apiVersion": "serving.turbo.dev/v1alpha1",
    "kind": "TurboDeployment",
    "metadata": {"name": "kept", "namespace": "default"},
    "spec": {"model": {"uri": "hf://acme/tiny"}},
}


@pytest.fixture(scope="module")
def cluster(empty_cluster: Access) -> Access:
    for name, labels in ((SYSTEM, {"pod-security.kubernetes.io/enforce": "restricted"}), ("team-a", {})):
        empty_cluster.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        )
        empty_cluster.kubectl("wait", "--for=create", "serviceaccount/default", "-n", name)
    return empty_cluster


@pytest.fixture
def release(helm: Callable[..., str], cluster: Access) -> Callable[..., str]:
    def call(*arguments: str) -> str:
        images = UNUSED_IMAGES if arguments[0] in ("install", "upgrade") else ()
        where = (f"--kubeconfig={cluster.kubeconfig}", f"--namespace={SYSTEM}")
        return helm(*arguments, *images, *where)

    return call


SCENARIOS = {
    "default": (),
    "named-namespaces": ("--set=watchNamespaces={default,team-a}",),
    "digests": (f"--set=image.operator.digest=sha256:{'a' * 64},image.runtime.digest=sha256:{'b' * 64}",),
    "placed-and-extended": (
        "--set=nameOverride=speedy",
        "--set=serviceAccount.name=account,serviceAccount.annotations.note=a",
        "--set=podLabels.team=a,podAnnotations.note=a",
        '--set-json=affinity={"nodeAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[]}}',
        (
            '--set-json=topologySpreadConstraints=[{"maxSkew":1,"topologyKey":"zone",'
            '"whenUnsatisfiable":"ScheduleAnyway"}]'
        ),
        '--set-json=extraEnv=[{"name":"NO_PROXY","value":"*"}]',
        '--set-json=extraVolumes=[{"name":"ca","configMap":{"name":"ca"}}]',
        '--set-json=extraVolumeMounts=[{"name":"ca","mountPath":"/ca"}]',
        (
            '--set-json=extraObjects=[{"apiVersion":"v1","kind":"ConfigMap",'
            '"metadata":{"name":"ca","namespace":"turbo-system"}}]'
        ),
    ),
    "everything-set": (
        "--set=imagePullPolicy=Never",
        "--set=imagePullSecrets[0].name=registry",
        "--set=nodeSelector.disk=ssd",
        "--set=tolerations[0].operator=Exists",
        "--set=priorityClassName=system-cluster-critical",
        "--set=resources.limits.cpu=1",
        "--set=crds.keep=false",
    ),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_api_server_accepts_every_manifest(cluster: Access, render: Render, scenario: str) -> None:
    manifests = yaml.safe_dump_all(render(*SCENARIOS[scenario]))
    cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=manifests)


def test_operator_pod_is_admitted_where_pod_security_is_restricted(cluster: Access, render: Render) -> None:
    (deployment,) = (item for item in render() if item["kind"] == "Deployment")
    template = deployment["spec"]["template"]
    template["spec"]["serviceAccountName"] = "default"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "operator", "namespace": SYSTEM},
        **template,
    }
    pod["metadata"] = {"name": "operator", "namespace": SYSTEM, "labels": template["metadata"]["labels"]}
    cluster.kubectl("apply", "--dry-run=server", "-f", "-", input=json.dumps(pod))
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(CommandError, match="violates PodSecurity"):
        cluster.kubectl("apply", "--dry-run=server", "-f", "-", input=json.dumps(pod))


def test_install_upgrade_uninstall_and_install_again(
    cluster: Access, release: Callable[..., str], chart: str
) -> None:
    notes = release("install", "turbo", chart)
    assert "kubectl get turboaccelerators" in notes
    cluster.wait_for_crds()
    cluster.apply(MODEL)
    installed = cluster.get("deployment", "turbo", "-n", SYSTEM)
    assert installed["spec"]["template"]["spec"]["containers"][0]["image"] == "turbo-operator:0.1.0"
    # Its pod is made (no quota, policy or missing account forbids it), though no node runs it here.
    cluster.kubectl(
        "wait", "--for=create", "pod", "-l", "app.kubernetes.io/name=turbo-operator", "-n", SYSTEM
    )

    assert list_foreign_values(cluster) == []
    release("upgrade", "turbo", chart, "--set=image.operator.tag=next", "--set=watchNamespaces={team-a}")
    assert list_foreign_values(cluster) == ["watchNamespaces"], "the demo leaves such a release alone"
    upgraded = cluster.get("deployment", "turbo", "-n", SYSTEM)
    assert upgraded["spec"]["template"]["spec"]["containers"][0]["image"] == "turbo-operator:next"
    assert cluster.get("rolebinding", "turbo", "-n", "team-a")["roleRef"]["name"] == "turbo"

    release("uninstall", "turbo", "--wait")
    assert list_foreign_values(cluster) == []
    with pytest.raises(CommandError, match="not found"):
        cluster.get("deployment", "turbo", "-n", SYSTEM)
    assert cluster.get("td", "kept")["spec"]["model"]["uri"] == "hf://acme/tiny"

    with pytest.raises(CommandError, match="cannot be imported into the current release"):
        release("install", "other", chart)
    release("install", "other", chart, "--take-ownership")
    assert cluster.get("td", "kept")["spec"]["model"]["uri"] == "hf://acme/tiny"

    # Somebody who wants all of it gone says so, and the objects go with their kind.
    release("upgrade", "other", chart, "--set=crds.keep=false")
    release("uninstall", "other", "--wait")
    cluster.kubectl("wait", "--for=delete", "crd/turbodeployments.serving.turbo.dev")
    with pytest.raises(
        CommandError, match=r"could not find the requested resource|doesn't have a resource type"
    ):
        cluster.get("td", "kept")


def test_a_release_that_a_stopped_helm_left_half_done_can_be_changed_again(
    cluster: Access, release: Callable[..., str], chart: str
) -> None:
    def stop_midway(state: str) -> None:
        helm = binaries.ensure(("helm",))["helm"]
        where = [f"--kubeconfig={cluster.kubeconfig}", f"--namespace={SYSTEM}"]
        # No node runs the operator, so that helm waits for it until it is killed.
        words = [helm, "upgrade", "--install", "turbo", chart, "--wait", *where, *UNUSED_IMAGES]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as waiting:
            give_up = time.monotonic() + 60.0
            while state not in release("list", "--all") or not operator_is_made():
                assert time.monotonic() < give_up
                time.sleep(0.1)
            waiting.kill()

    def operator_is_made() -> bool:
        return bool(cluster.kubectl("get", "deployments", "-n", SYSTEM, "-o", "name"))

    stop_midway("pending-install")
    with pytest.raises(CommandError, match="another operation"):
        release("upgrade", "--install", "turbo", chart)
    recover(cluster)
    assert "turbo" not in release("list", "--all")
    assert not operator_is_made()
    release("upgrade", "--install", "turbo", chart)
    stop_midway("pending-upgrade")
    recover(cluster)
    try:
        release("upgrade", "--install", "turbo", chart)
    finally:
        release("uninstall", "turbo", "--wait")


def may(cluster: Access, who: str, verb: str, what: str, namespace: str) -> bool:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": who,
            "resourceAttributes": {
                "verb": verb,
                "resource": what.partition("/")[0],
                "subresource": what.partition("/")[2],
                "group": "serving.turbo.dev" if what.startswith("turbo") else "",
                "namespace": namespace,
            },
        },
    }
    answer = cluster.kubectl("create", "-f", "-", "-o", "json", input=json.dumps(review))
    return bool(json.loads(answer)["status"]["allowed"])


def test_roles_end_at_the_named_namespaces(cluster: Access, release: Callable[..., str], chart: str) -> None:
    release("install", "turbo", chart, "--set=watchNamespaces={team-a}", "--set=accelerators.apply=false")
    account = f"system:serviceaccount:{SYSTEM}:turbo"
    try:
        assert may(cluster, account, "patch", "configmaps", "team-a")
        assert may(cluster, account, "patch", "turbodeployments/status", "team-a")
        assert not may(cluster, account, "patch", "configmaps", "default")
        assert not may(cluster, account, "patch", "turbodeployments", "team-a")
        assert may(cluster, account, "watch", "turbodrafts", "team-a")
        assert may(cluster, account, "patch", "turbodrafts", "team-a")
        assert not may(cluster, account, "delete", "turbodrafts", "team-a")
        assert not may(cluster, account, "get", "secrets", "team-a")
        assert may(cluster, account, "list", "turboaccelerators", "")
        assert not may(cluster, account, "patch", "turboaccelerators", "")
    finally:
        release("uninstall", "turbo", "--wait")


def test_whoever_edits_a_namespace_may_deploy_models_in_it(
    cluster: Access, release: Callable[..., str], chart: str
) -> None:
    release("install", "turbo", chart)
    try:
        cluster.kubectl("create", "rolebinding", "jane", "-n", "team-a", "--clusterrole=edit", "--user=jane")
        # Roles are gathered by a controller, a moment after the release.
        cluster.kubectl(
            "wait",
            "clusterrole/edit",
            "--for=jsonpath={.rules[?(@.resources[0]=='turbodeployments/scale')].verbs[0]}",
        )
        assert may(cluster, "jane", "create", "turbodeployments", "team-a")
        assert may(cluster, "jane", "create", "turbodrafts", "team-a")
        assert may(cluster, "jane", "patch", "turbodeployments/scale", "team-a")
        assert not may(cluster, "jane", "patch", "turbodeployments/status", "team-a")
        assert not may(cluster, "jane", "create", "turbodeployments", "default")
        # A budget is for an administrator to set, as a quota is.
        assert not may(cluster, "jane", "create", "turbobudgets", "team-a")
        cluster.kubectl("create", "rolebinding", "ann", "-n", "team-a", "--clusterrole=admin", "--user=ann")
        cluster.kubectl(
            "wait",
            "clusterrole/admin",
            "--for=jsonpath={.rules[?(@.resources[0]=='turbobudgets')].verbs[0]}",
        )
        assert may(cluster, "ann", "patch", "turbobudgets", "team-a")
        assert not may(cluster, "ann", "patch", "turbobudgets/status", "team-a")
    finally:
        release("uninstall", "turbo", "--wait")
