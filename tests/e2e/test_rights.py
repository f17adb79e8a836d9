"""The chart's role in a real API server: it gives what the operator needs and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from turbo_dev.binaries import ensure
from turbo_dev.operated import RELEASE, SYSTEM
from turbo_dev.paths import REPOSITORY
from turbo_dev.release import UNUSED_IMAGES
from turbo_dev.shell import CommandError, run
from turbo_operator import resources

pytestmark = pytest.mark.cluster

CONFIGMAP = resources.CHILDREN["ConfigMap"]
# What everybody who has a token may do, by the API server's own roles.
BASIC = {"selfsubjectaccessreviews", "selfsubjectreviews", "selfsubjectrulesreviews"}
Right = tuple[str, str, str, str]  # verb, group, resource, name or *


def rights(rules: Any) -> set[Right]:
    return {
        (verb, group, resource, name)
        for rule in rules
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames") or ["*"]
    }


def granted(cluster: Any, namespace: str) -> set[Right]:
    """What the API server says that the operator may do in a namespace."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    words = ("create", "--validate=false", "-f", "-", "-o", "json", f"--as={cluster.user}")
    said = cluster.access.kubectl(*words, input=json.dumps(review))
    return {right for right in rights(json.loads(said)["status"]["resourceRules"]) if right[2] not in BASIC}


def charted(*kinds: str) -> set[Right]:
    helm = ensure(("helm",))["helm"]
    chart = str(REPOSITORY / "charts/turbo")
    text = run([helm, "template", RELEASE, chart, "--namespace", SYSTEM, *UNUSED_IMAGES])
    roles = [item for item in yaml.safe_load_all(text) if item and item["kind"] in kinds]
    own = [item for item in roles if item["metadata"]["name"] in NAMES]
    return rights(rule for item in own for rule in item["rules"])


NAMES = {RELEASE, f"{RELEASE}-accelerators", f"{RELEASE}-shipped", f"{RELEASE}-lease"}


def test_the_api_server_grants_the_operator_what_the_chart_says_and_no_more(cluster: Any) -> None:
    namespace = cluster.namespace("rights")
    assert granted(cluster, namespace) == charted("ClusterRole")
    assert granted(cluster, SYSTEM) == charted("ClusterRole", "Role")


@pytest.mark.parametrize(
    "words",
    [
        ("get", "secrets"),
        ("create", "secret", "generic", "mine"),
        ("delete", "--raw=/api/v1/namespaces/default/configmaps/others"),
        ("delete", "--raw=/api/v1/namespaces/default/configmaps"),
        ("delete", "--raw=/api/v1/namespaces/default/services/kubernetes"),
        ("delete", "--raw=/api/v1/namespaces/default/pods/others"),
        ("create", "--raw=/api/v1/namespaces/default/pods/others/exec?command=sh", "-f", "/dev/null"),
        ("create", "token", "default"),
        ("create", "clusterrolebinding", "mine", "--clusterrole=cluster-admin", "--user=me"),
        ("create", "rolebinding", "mine", "--clusterrole=cluster-admin", "--user=me"),
        ("create", "namespace", "mine"),
        ("get", "persistentvolumeclaims"),
        ("delete", "--raw=/apis/serving.turbo.dev/v1alpha1/namespaces/default/turbodeployments/others"),
        ("delete", "--raw=/api/v1/nodes/others"),
        ("get", "pods", "--as-group=system:masters", "--as=admin"),
    ],
    ids=" ".join,
)
def test_the_operators_token_is_refused(cluster: Any, tmp_path: Path, words: tuple[str, ...]) -> None:
    """With the token itself, as whoever stole it would."""
    client = ensure(("kubectl",))["kubectl"]
    with pytest.raises(CommandError, match=r"[Ff]orbidden"):
        run([client, f"--kubeconfig={cluster.role}", f"--cache-dir={tmp_path}", *words, "-n", "default"])


def test_a_configmap_that_nothing_needs_stays_and_goes_with_its_object(cluster: Any) -> None:
    namespace = cluster.namespace("left-configmap")
    cluster.start(namespace)
    capture = {"persistentVolumeClaim": {"claimName": "kept"}}
    cluster.create_deployment(namespace, capture=capture)
    before = cluster.until_ready(namespace)["status"]["plan"]["hash"]
    assert cluster.api.get(CONFIGMAP, namespace, "chat-capture")
    cluster.api.patch(resources.TURBODEPLOYMENT, namespace, "chat", {"spec": {"capture": None}})

    def is_replaced() -> bool:
        names = cluster.children(namespace)
        return not any(before in name for name in names) and cluster.is_ready(cluster.deployment(namespace))

    cluster.until(is_replaced, "nothing is captured any more, and the pods before are gone")
    assert cluster.api.get(CONFIGMAP, namespace, "chat-capture")
    codes = {event["responseStatus"]["code"] for event in cluster.writes(namespace)}
    assert not codes & {403, 405}, "nothing was tried that is not granted"
    cluster.access.kubectl("delete", "td", "chat", "-n", namespace)
    cluster.until(lambda: cluster.api.get(CONFIGMAP, namespace, "chat-capture") is None, "it is collected")
