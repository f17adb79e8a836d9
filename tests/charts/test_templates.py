"""What the chart renders: values are checked, and the operator understands its settings."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from turbo_dev.shell import CommandError
from turbo_operator import settings
from turbo_operator.controller.catalog_sync import MEMORY_NAME

Render = Callable[..., list[dict[str, Any]]]
DIGEST = "sha256:" + "0123456789abcdef" * 4


def one(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (item for item in objects if item["kind"] == kind)
    return found


def operator_settings(objects: list[dict[str, Any]]) -> settings.Settings:
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return settings.read({variable["name"]: _value(variable, objects) for variable in container["env"]})


def _value(variable: dict[str, Any], objects: list[dict[str, Any]]) -> str:
    """As the container has it: the kubelet fills in what names a field of the pod."""
    if "value" in variable:
        return str(variable["value"])
    assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}
    return str(one(objects, "Deployment")["metadata"]["namespace"])


def test_lint_finds_nothing(helm: Callable[..., str], chart: str) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", chart)


WRONG_VALUES = {
    "unknown": ("--set=replicas=2", "replicas"),
    "misspelt": ("--set=crds.instal=false", "instal"),
    "word-for-flag": ("--set-string=crds.keep=maybe", "boolean"),
    "digest": ("--set=image.runtime.digest=latest", "digest"),
    "image-as-text": ("--set=image.operator=turbo:1", "operator"),
    "pull-policy": ("--set=imagePullPolicy=Sometimes", "imagePullPolicy"),
    "namespace": ("--set=watchNamespaces={Team_A}", "watchNamespaces"),
    "log-level": ("--set=log.level=loud", "level"),
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_wrong_values_are_refused(render: Render, case: str) -> None:
    argument, named = WRONG_VALUES[case]
    with pytest.raises(CommandError, match="don't meet the specifications of the schema") as refusal:
        render(argument)
    assert named in str(refusal.value)


def test_operator_understands_the_default_settings(render: Render) -> None:
    told = operator_settings(render())
    assert told.runtime_image == "turbo-runtime:0.1.0"
    assert told.namespaces == ()
    assert told.apply_catalogue is True


def test_operator_understands_changed_settings(render: Render) -> None:
    told = operator_settings(
        render(
            "--set=image.runtime.repository=registry.example:5000/turbo-runtime",
            f"--set=image.runtime.digest={DIGEST}",
            "--set=watchNamespaces={a,b}",
            "--set=accelerators.apply=false",
            "--set=imagePullPolicy=Always",
            "--set=log.level=DEBUG",
            "--set=log.format=text",
        )
    )
    assert told.runtime_image == f"registry.example:5000/turbo-runtime@{DIGEST}"
    assert told.image_pull_policy == "Always"
    assert told.namespaces == ("a", "b")
    assert told.apply_catalogue is False
    assert (told.log_level, told.log_format) == ("DEBUG", "text")


def test_probes_and_metrics_meet_the_ports_that_the_operator_listens_on(render: Render) -> None:
    objects = render()
    told = operator_settings(objects)
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": told.metrics_port, "health": told.health_port}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "health"}


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
    binding = one(objects, "ClusterRoleBinding")
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


def test_the_operator_may_remember_what_it_has_shipped_in_its_own_namespace_alone(render: Render) -> None:
    objects = render("--set=watchNamespaces={a,b}")
    role = one(objects, "Role")
    assert role["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": [MEMORY_NAME],
            "verbs": ["list", "create", "patch"],
        }
    ]
    assert role["metadata"]["namespace"] == operator_settings(objects).operator_namespace
    (binding,) = (
        item for item in objects if item["kind"] == "RoleBinding" and item["roleRef"]["kind"] == "Role"
    )
    assert binding["metadata"]["namespace"] == role["metadata"]["namespace"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == one(objects, "ServiceAccount")["metadata"]["name"]
    assert "Role" not in {item["kind"] for item in render("--set=accelerators.apply=false")}


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


def test_values_schema_knows_exactly_the_values(chart: str) -> None:
    values = yaml.safe_load((Path(chart) / "values.yaml").read_text(encoding="utf-8"))
    schema = yaml.safe_load((Path(chart) / "values.schema.json").read_text(encoding="utf-8"))
    assert set(schema["properties"]) - {"global"} == set(values)


def test_chart_has_the_version_of_the_distribution(chart: str) -> None:
    described = yaml.safe_load((Path(chart) / "Chart.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((Path(chart).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    assert described["version"] == described["appVersion"] == project["version"]


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        # Amounts are one value: which resources they name is the user's matter.
        if isinstance(value, dict) and value and name != "resources":
            found |= _leaves(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def test_readme_lists_every_value_with_its_default(chart: str) -> None:
    values = yaml.safe_load((Path(chart) / "values.yaml").read_text(encoding="utf-8"))
    readme = (Path(chart) / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", readme, re.MULTILINE))
    assert {name: json.loads(default) for name, default in rows.items()} == _leaves(values)
