"""Which objects a release makes, what they are named, and which rights its roles give."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from turbo_operator import resources
from turbo_operator.controller.catalog_sync import MEMORY_NAME
from turbo_operator.controller.field_ownership import added_fields
from turbo_operator.controller.handlers import REFLECTED, watched
from turbo_operator.settings import Settings

ROOT = Path(__file__).parents[2]
Render = Callable[..., list[dict[str, Any]]]


def test_without_crds_none_is_rendered(render: Render) -> None:
    kinds = {item["kind"] for item in render("--set=crds.install=false")}
    assert "CustomResourceDefinition" not in kinds
    assert "Deployment" in kinds


@pytest.mark.parametrize(("keep", "policy"), [("true", "keep"), ("false", None)])
def test_keep_marks_the_crds_alone(render: Render, keep: str, policy: str | None) -> None:
    marks = {
        item["kind"]: item["metadata"].get("annotations", {}).get("helm.sh/resource-policy")
        for item in render(f"--set=crds.keep={keep}")
    }
    assert marks.pop("CustomResourceDefinition") == policy
    assert set(marks.values()) == {None}


def test_named_namespaces_get_roles_and_the_cluster_none(render: Render) -> None:
    objects = render("--set=watchNamespaces={a,b}")
    roles = {
        item["metadata"]["namespace"]
        for item in objects
        if item["kind"] == "RoleBinding" and item["roleRef"]["kind"] == "ClusterRole"
    }
    assert roles == {"a", "b"}
    # What is left for the whole cluster has no namespace: the accelerators, and the nodes that have them.
    (binding,) = (item for item in objects if item["kind"] == "ClusterRoleBinding")
    (role,) = (
        item
        for item in objects
        if item["kind"] == "ClusterRole" and item["metadata"]["name"] == binding["roleRef"]["name"]
    )
    assert {name: rule["verbs"] for rule in role["rules"] for name in rule["resources"]} == {
        "turboaccelerators": ["list", "watch", "create", "patch"],
        "turboaccelerators/status": ["patch"],
        "nodes": ["list", "watch"],
    }


def rules_of(objects: list[dict[str, Any]], name: str) -> list[tuple[str, list[str]]]:
    """Verbs by resource of a ClusterRole."""
    (role,) = (item for item in objects if (item["kind"], item["metadata"]["name"]) == ("ClusterRole", name))
    return [
        (f"{group}/{resource}".lstrip("/"), rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    ]


def test_with_a_router_the_operator_may_make_its_account_and_bind_it_to_one_role_alone(
    render: Render,
) -> None:
    objects = render("--set=image.router.repository=a/b")
    more = [rule for rule in rules_of(objects, "turbo") if rule not in rules_of(render(), "turbo")]
    assert more == [
        ("serviceaccounts", ["list", "watch", "create", "patch", "delete"]),
        ("rbac.authorization.k8s.io/rolebindings", ["list", "watch", "create", "patch", "delete"]),
        ("rbac.authorization.k8s.io/clusterroles", ["bind"]),
    ]
    roles = {item["metadata"]["name"]: item for item in objects if item["kind"] == "ClusterRole"}
    (bind,) = (rule for rule in roles["turbo"]["rules"] if rule["verbs"] == ["bind"])
    assert bind["resourceNames"] == ["turbo-router"]
    assert rules_of(objects, "turbo-router") == [("pods", ["get", "list", "watch"])]


def test_a_namespaces_role_has_these_verbs_and_no_other(render: Render) -> None:
    """A request that is refused fails a cluster test, and a right that nothing uses fails none but this."""
    assert rules_of(render(), "turbo") == [  # as the release is named
        ("serving.turbo.dev/turbodeployments", ["list", "watch"]),
        ("serving.turbo.dev/turbobudgets", ["list", "watch"]),
        ("serving.turbo.dev/turbodrafts", ["list", "watch", "create", "patch"]),
        ("serving.turbo.dev/turbodeployments/status", ["patch"]),
        ("serving.turbo.dev/turbobudgets/status", ["patch"]),
        ("pods", ["list", "watch", "patch"]),
        ("resourcequotas", ["list", "watch"]),
        ("services", ["list", "watch", "create", "patch", "update"]),
        ("configmaps", ["list", "watch", "create", "patch"]),
        ("apps/deployments", ["list", "watch", "create", "patch", "update", "delete"]),
        ("apps/controllerrevisions", ["list", "watch", "create", "patch", "delete"]),
        ("apps/replicasets", ["list", "watch"]),
        ("apps/statefulsets", ["list", "watch"]),
        (
            "leaderworkerset.x-k8s.io/leaderworkersets",
            ["list", "watch", "create", "patch", "update", "delete"],
        ),
        (
            "inference.networking.k8s.io/inferencepools",
            ["list", "watch", "create", "patch", "update", "delete"],
        ),
        ("batch/jobs", ["list", "watch", "create", "patch", "delete"]),
        ("policy/poddisruptionbudgets", ["list", "watch", "create", "patch", "update", "delete"]),
        ("events.k8s.io/events", ["create"]),
    ]


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/install.md"])
def test_the_documents_tell_each_right_of_the_operator(render: Render, page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")

    def named(beginning: str) -> set[str]:
        """The resources in the sentence that begins so."""
        (sentence,) = re.findall(rf"{beginning} ([^.]*)\.", text)
        return {word.lower() for word in re.findall(r"[A-Z]\w+s|nodes|pods", sentence)}

    objects = render("--set=accelerators.apply=false")
    rights = rules_of(objects, "turbo") + rules_of(objects, "turbo-accelerators")
    verbs = {name.split("/")[-1]: {*can} for name, can in rights if not name.endswith("/status")}
    status = {name.split("/")[-2] for name, _ in rights if name.endswith("/status")}

    def having(check: Callable[[set[str]], bool]) -> set[str]:
        return {name for name, can in verbs.items() if check(can)}

    written, read = having(lambda can: "create" in can), having(lambda can: can == {"list", "watch"})
    assert named("It writes") == written | status
    assert named("and the status of") == status
    assert named("It may patch") == having(lambda can: "patch" in can) - written
    assert named("It only reads") == read - {"turboaccelerators"}
    assert named("It never deletes") == having(lambda can: "delete" not in can) - read | {"turboaccelerators"}
    by_default = dict(rules_of(render(), "turbo-accelerators"))["serving.turbo.dev/turboaccelerators"]
    assert {*by_default} - verbs["turboaccelerators"] == {"create", "patch"}
    assert "With `accelerators.apply`, the default, it also writes TurboAccelerators" in text


def used_verbs() -> dict[str, set[str]]:
    """The verbs by resource that the operator's code uses where it works, by its own tables."""
    used: dict[str, set[str]] = {}

    def use(resource: resources.Resource, *verbs: str, of: str = "") -> None:
        used.setdefault(f"{resource.group}/{resource.plural}{of}".lstrip("/"), set()).update(verbs)

    settings = Settings(runtime_image="r", router_image="r")
    for seen in (*watched(settings), *REFLECTED, *resources.GROUPED, resources.INFERENCEPOOL, resources.POD):
        if seen.namespaced:
            use(seen, "list", "watch")
    somebody = [
        {"manager": "other", "fieldsV1": {"f:spec": {"f:selector": {}, "f:leaderWorkerTemplate": {}}}}
    ]
    for child in resources.CHILDREN.values():
        use(child, "create", "patch")  # the API server asks for both where something is applied
        if added_fields(child.kind, somebody):
            use(child, "update")
        if child.kind not in resources.UNDELETED:
            use(child, "delete")
    use(resources.TURBODRAFT, "create", "patch")
    use(resources.TURBODEPLOYMENT, "patch", of="/status")
    use(resources.TURBOBUDGET, "patch", of="/status")
    use(resources.POD, "patch")
    use(resources.EVENT, "create")
    return used


def test_the_operator_uses_each_verb_that_it_has_and_has_each_that_it_uses(render: Render) -> None:
    """Found on a node: the budget of a router could not be removed, and its object was stalled."""
    rules = rules_of(render("--set=image.router.repository=example.com/router"), "turbo")
    given = {name: {*verbs} for name, verbs in rules}
    assert given.pop("rbac.authorization.k8s.io/clusterroles") == {"bind"}
    assert given == used_verbs()


def test_two_operators_are_apart_and_a_drained_node_takes_one_at_a_time(render: Render) -> None:
    objects = {
        item["kind"]: item for item in render() if item["kind"] in ("Deployment", "PodDisruptionBudget")
    }
    deployment, budget = objects["Deployment"]["spec"], objects["PodDisruptionBudget"]["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    apart = deployment["template"]["spec"]["affinity"]["podAntiAffinity"]
    (term,) = apart["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["labelSelector"] == deployment["selector"] == budget["selector"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"  # two that crash do not block a drain


@pytest.mark.parametrize("replicas", [0, 1])
def test_one_operator_or_none_has_no_budget_that_keeps_a_node_from_being_drained(
    render: Render, replicas: int
) -> None:
    objects = render(f"--set=replicas={replicas}")
    assert "PodDisruptionBudget" not in {item["kind"] for item in objects}
    (deployment,) = (item for item in objects if item["kind"] == "Deployment")
    assert deployment["spec"]["replicas"] == replicas


def test_the_operator_may_write_its_own_lease_and_no_other_ones(render: Render) -> None:
    objects = render("--set=fullnameOverride=mine")
    (role,) = (item for item in objects if (item["kind"], item["metadata"]["name"]) == ("Role", "mine-lease"))
    create, rest = role["rules"]
    assert create["verbs"] == ["create"]
    assert (rest["verbs"], rest["resourceNames"]) == (["list", "update"], ["mine"])
    (container,) = next(item for item in objects if item["kind"] == "Deployment")["spec"]["template"]["spec"][
        "containers"
    ]
    assert {"name": "TURBO_LEASE_NAME", "value": "mine"} in container["env"]


def test_no_role_reads_secrets_or_uses_wildcards(render: Render) -> None:
    for item in render():
        for rule in item.get("rules", []):
            named = {*rule["resources"], *rule["verbs"], *rule["apiGroups"]}
            assert named.isdisjoint({"*", "secrets", "pods/exec", "persistentvolumes"})
            assert "nodes" not in rule["resources"] or rule["verbs"] == ["list", "watch"]


def test_two_releases_make_objects_of_different_names(render: Render) -> None:
    def names(release: str) -> set[tuple[str, str]]:
        return {
            (item["kind"], item["metadata"]["name"])
            for item in render("--set=crds.install=false", release=release)
        }

    assert names("one").isdisjoint(names("two"))


def test_long_release_names_stay_within_bounds(render: Render) -> None:
    for item in render(release="r" * 53):
        if item["kind"] != "CustomResourceDefinition":
            assert len(item["metadata"]["name"]) <= 63


def test_the_operator_may_remember_what_it_has_shipped_in_its_own_namespace_alone(render: Render) -> None:
    objects = render("--set=watchNamespaces={a,b}")

    def shipped(kind: str) -> list[dict[str, Any]]:
        name = "turbo-shipped"
        return [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]

    (role,) = shipped("Role")
    (deployment,) = (item for item in objects if item["kind"] == "Deployment")
    (account,) = (item for item in objects if item["kind"] == "ServiceAccount")
    assert role["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": [MEMORY_NAME],
            "verbs": ["list", "create", "patch"],
        }
    ]
    assert role["metadata"]["namespace"] == deployment["metadata"]["namespace"]
    (binding,) = shipped("RoleBinding")
    assert binding["metadata"]["namespace"] == role["metadata"]["namespace"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]
    objects = render("--set=accelerators.apply=false")
    assert not shipped("Role")


def test_the_operators_container_can_write_nothing_and_gain_nothing(render: Render) -> None:
    (deployment,) = (item for item in render() if item["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
