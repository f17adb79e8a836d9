"""What the chart renders: values are checked, and the operator understands its settings."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from turbo_dev.shell import CommandError
from turbo_operator import settings
from turbo_operator.controller.handlers import HEALTH_PATH

Render = Callable[..., list[dict[str, Any]]]
DIGEST = "sha256:" + "0123456789abcdef" * 4


def one(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (item for item in objects if item["kind"] == kind)
    return found


def operator_pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = one(objects, "Deployment")["spec"]["template"]
    return pod


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
    "unknown": ("--set=replicaCount=2", "replicaCount"),
    "replicas-as-word": ("--set-string=replicas=two", "replicas"),
    "replicas-below-none": ("--set=replicas=-1", "replicas"),
    "misspelt": ("--set=crds.instal=false", "instal"),
    "word-for-flag": ("--set-string=crds.keep=maybe", "boolean"),
    "digest": ("--set=image.runtime.digest=latest", "digest"),
    "image-as-text": ("--set=image.operator=turbo:1", "operator"),
    "pull-policy": ("--set=imagePullPolicy=Sometimes", "imagePullPolicy"),
    "mirror": ("--set=global.imageRegistry=https://mirror.example", "imageRegistry"),
    "variable-of-models": ("--set-string=modelEnv.A-B=x", "modelEnv"),
    "namespace": ("--set=watchNamespaces={Team_A}", "watchNamespaces"),
    "log-level": ("--set=log.level=loud", "level"),
    "label-of-the-chart": ('--set-json=podLabels={"app.kubernetes.io/name":"x"}', "podLabels"),
    "label-as-number": ("--set=podLabels.team=1", "team"),
    "annotation-as-number": ("--set=podAnnotations.note=1", "note"),
    "variable-of-the-chart": ("--set=extraEnv[0].name=TURBO_LOG_LEVEL", "extraEnv"),
    "variable-without-name": ("--set=extraEnv[0].value=x", "extraEnv"),
    "argument-as-number": ("--set=extraArgs={1}", "extraArgs"),
    "volume-of-the-chart": ("--set=extraVolumes[0].name=tmp", "extraVolumes"),
    "mount-without-path": ("--set=extraVolumeMounts[0].name=ca", "mountPath"),
    "object-as-number": ("--set=extraObjects={1}", "extraObjects"),
    "affinity-as-list": ("--set=affinity={a}", "affinity"),
    "spread-as-map": ("--set=topologySpreadConstraints.maxSkew=1", "topologySpreadConstraints"),
    "account-name": ("--set=serviceAccount.name=My_Account", "serviceAccount"),
    "long-name": (f"--set=nameOverride={'n' * 21}", "nameOverride"),
    "long-full-name": (f"--set=fullnameOverride={'n' * 41}", "fullnameOverride"),
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
    assert told.vllm_image == settings.Settings(runtime_image="any").vllm_image
    assert told.router_image is None
    assert told.namespaces == ()
    assert told.apply_catalog is True
    assert told.billing_unit == "Accelerator"
    assert told.lease_name == "turbo"


def test_operator_understands_changed_settings(render: Render) -> None:
    told = operator_settings(
        render(
            "--set=image.runtime.repository=registry.example:5000/turbo-runtime",
            f"--set=image.runtime.digest={DIGEST}",
            "--set=image.vllm.repository=registry.example:5000/vllm",
            "--set=image.vllm.tag=cpu",
            "--set=image.router.repository=registry.example:5000/turbo-router",
            "--set=router.args=--policy=random --queue-size=5",
            "--set=activator.args=--hold-timeout=5",
            "--set=modelEnv.HF_ENDPOINT=https://hub.example,modelEnv.NO_PROXY=.svc\\,10.0.0.0/8",
            "--set=watchNamespaces={a,b}",
            "--set=accelerators.apply=false",
            "--set=accelerators.billingUnit=Node",
            "--set=imagePullPolicy=Always",
            "--set=log.level=DEBUG",
            "--set=log.format=text",
        )
    )
    assert told.runtime_image == f"registry.example:5000/turbo-runtime@{DIGEST}"
    assert told.vllm_image == "registry.example:5000/vllm:cpu"
    assert told.router_image == "registry.example:5000/turbo-router:0.1.0"
    assert told.router_role == "turbo-router"
    assert told.router_args == ("--policy=random", "--queue-size=5")
    assert told.activator_args == ("--hold-timeout=5",)
    assert told.image_pull_policy == "Always"
    assert told.model_env == (("HF_ENDPOINT", "https://hub.example"), ("NO_PROXY", ".svc,10.0.0.0/8"))
    assert told.namespaces == ("a", "b")
    assert told.apply_catalog is False
    assert told.billing_unit == "Node"
    assert (told.log_level, told.log_format) == ("DEBUG", "text")


def test_probes_and_metrics_meet_the_ports_that_the_operator_listens_on(render: Render) -> None:
    objects = render()
    told = operator_settings(objects)
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": told.metrics_port, "health": told.health_port}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "health"}


@pytest.mark.parametrize("part", ["operator", "runtime"])
def test_without_a_repository_the_chart_refuses_and_names_the_command_that_builds(
    render: Render, part: str
) -> None:
    with pytest.raises(CommandError, match=rf"image\.{part}\.repository is empty") as refusal:
        render(f"--set=image.{part}.repository=")
    assert "`make images REGISTRY=registry.example.com/turbo`" in str(refusal.value)


def test_default_values_name_no_image(helm: Callable[..., str], chart: str) -> None:
    with pytest.raises(CommandError, match=r"repository is empty"):
        helm("template", "turbo", chart)


def test_names_and_selectors_of_an_installed_release_stay(render: Render) -> None:
    objects = render("--skip-tests", "--set=crds.install=false")
    names = {(item["kind"], item["metadata"]["name"].removeprefix("turbo")) for item in objects}
    assert names == {
        ("ServiceAccount", ""),
        ("Deployment", ""),
        ("Service", "-metrics"),
        *(("ClusterRole", suffix) for suffix in ("", "-accelerators", "-view", "-edit", "-admin")),
        *(("ClusterRoleBinding", suffix) for suffix in ("", "-accelerators")),
        ("PodDisruptionBudget", ""),
        *((kind, suffix) for suffix in ("-shipped", "-lease") for kind in ("Role", "RoleBinding")),
    }
    selector = {"app.kubernetes.io/name": "turbo-operator", "app.kubernetes.io/instance": "turbo"}
    assert one(objects, "Deployment")["spec"]["selector"] == {"matchLabels": selector}
    assert one(objects, "Service")["spec"]["selector"] == selector
    for item in objects:
        assert selector.items() <= item["metadata"]["labels"].items()


def test_reused_values_of_a_chart_without_the_new_ones_render_the_same(render: Render, chart: str) -> None:
    values = yaml.safe_load((Path(chart) / "values.yaml").read_text(encoding="utf-8"))
    begin = (
        "extra",
        "pod",
        "global",
        "modelEnv",
        "serviceAccount",
        "affinity",
        "topology",
        "name",
        "full",
        "replicas",
    )
    absent = [f"--set={name}=null" for name in values if name.startswith(begin)]
    assert len(absent) == 15
    assert render(*absent) == render()


PLACED = {
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "priorityClassName": "high",
}


@pytest.mark.parametrize("name", PLACED)
def test_the_operators_pod_is_placed_as_the_value_says(render: Render, name: str) -> None:
    assert name == "affinity" or name not in operator_pod(render())["spec"]
    placed = operator_pod(render(f"--set-json={name}={json.dumps(PLACED[name])}"))
    assert placed["spec"][name] == PLACED[name]


def test_pod_labels_and_annotations_are_the_pods_alone_and_leave_the_selector(render: Render) -> None:
    plain, objects = render(), render("--set=podLabels.team=a,podAnnotations.note=b")
    metadata = operator_pod(objects)["metadata"]
    assert metadata["labels"] == operator_pod(plain)["metadata"]["labels"] | {"team": "a"}
    assert metadata["annotations"] == {"note": "b"}
    deployments = [one(each, "Deployment") for each in (plain, objects)]
    assert deployments[0]["metadata"] == deployments[1]["metadata"]
    assert deployments[0]["spec"]["selector"] == deployments[1]["spec"]["selector"]


def test_what_the_chart_sets_itself_is_refused_as_extra(render: Render, chart: str) -> None:
    schema = json.loads((Path(chart) / "values.schema.json").read_text(encoding="utf-8"))["properties"]
    routed = ("--set=image.router.repository=a/b", "--set=router.args=-x", "--set=activator.args=-x")
    routed += ("--set=modelEnv.A=b",)
    pod = operator_pod(render("--set=watchNamespaces={a}", *routed))
    variables = {variable["name"] for variable in pod["spec"]["containers"][0]["env"]}
    assert set(schema["extraEnv"]["items"]["properties"]["name"]["not"]["enum"]) == variables
    refused = {name for name, allowed in schema["podLabels"]["properties"].items() if allowed is False}
    assert refused == set(pod["metadata"]["labels"])


def test_extra_env_reaches_the_operator_beside_its_settings(render: Render) -> None:
    extra = [{"name": "TURBO_NUM_WORKERS", "value": "3"}, {"name": "NO_PROXY", "value": "*"}]
    told = operator_settings(render(f"--set-json=extraEnv={json.dumps(extra)}"))
    assert told == dataclasses.replace(operator_settings(render()), num_workers=3)


def test_extra_args_follow_the_command(render: Render) -> None:
    (container,) = operator_pod(render("--set=extraArgs={--help,-v}"))["spec"]["containers"]
    assert (container["command"], container["args"]) == (["turbo", "operator"], ["--help", "-v"])
    assert "args" not in operator_pod(render())["spec"]["containers"][0]


def test_extra_volumes_are_mounted_beside_the_charts_own(render: Render) -> None:
    volume, mount = {"name": "ca", "configMap": {"name": "ca"}}, {"name": "ca", "mountPath": "/ca"}
    plain = operator_pod(render())["spec"]
    spec = operator_pod(
        render(
            f"--set-json=extraVolumes=[{json.dumps(volume)}]",
            f"--set-json=extraVolumeMounts=[{json.dumps(mount)}]",
        )
    )["spec"]
    assert spec["volumes"] == [*plain["volumes"], volume]
    assert spec["containers"][0]["volumeMounts"] == [*plain["containers"][0]["volumeMounts"], mount]


def test_extra_objects_are_templates_as_mappings_and_as_texts(render: Render) -> None:
    mapping = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-a"}}
    text = 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ include "turbo.fullname" . }}-b}\n'
    objects = render(f"--set-json=extraObjects={json.dumps([mapping, text])}", release="own")
    names = [item["metadata"]["name"] for item in objects if item["kind"] == "ConfigMap"]
    assert names == ["own-a", "own-turbo-b"]


@pytest.mark.parametrize("create", ["true", "false"])
def test_roles_are_bound_to_the_named_account(render: Render, create: str) -> None:
    objects = render(
        "--set=serviceAccount.name=account,serviceAccount.annotations.note=a,watchNamespaces={a}",
        f"--set=serviceAccount.create={create}",
    )
    subjects = [subject["name"] for item in objects for subject in item.get("subjects", [])]
    assert subjects == ["account"] * 4
    assert operator_pod(objects)["spec"]["serviceAccountName"] == "account"
    made = [item["metadata"] for item in objects if item["kind"] == "ServiceAccount"]
    accounts = [(each["name"], each["annotations"]) for each in made]
    assert accounts == ([("account", {"note": "a"})] if create == "true" else [])


def test_roles_are_never_bound_to_an_account_that_nobody_named(render: Render) -> None:
    with pytest.raises(CommandError, match=r"name an existing one in serviceAccount\.name"):
        render("--set=serviceAccount.create=false")


def test_name_overrides_rename_every_object(render: Render) -> None:
    def names(*arguments: str, release: str = "own") -> set[str]:
        objects = render("--set=crds.install=false", *arguments, release=release)
        assert len(objects) > 10
        return {item["metadata"]["name"] for item in objects}

    assert all(name.startswith("own-speedy") for name in names("--set=nameOverride=speedy"))
    assert all(name.startswith("whole") for name in names("--set=fullnameOverride=whole"))
    longest = names(f"--set=nameOverride={'n' * 20}", release="r" * 53)
    assert max(map(len, longest)) <= 63
    deployment = one(render("--set=nameOverride=speedy"), "Deployment")
    assert deployment["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] == "speedy"


def test_the_test_pod_has_the_operators_image_and_none_of_its_labels(render: Render) -> None:
    objects = render()
    pod = one(objects, "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (image,) = (container["image"] for container in pod["spec"]["containers"])
    assert image == operator_pod(objects)["spec"]["containers"][0]["image"]
    services = {item["metadata"]["name"]: item["spec"] for item in objects if item["kind"] == "Service"}
    for service in services.values():
        assert not service["selector"].items() <= pod["metadata"]["labels"].items()
        assert service["selector"].items() <= operator_pod(objects)["metadata"]["labels"].items()
    _, variable, name, port, _ = pod["spec"]["containers"][0]["args"]
    assert services[name]["ports"] == [{"name": "health", "port": int(port), "targetPort": "health"}]
    assert variable == "TURBO_HEALTH_SERVICE_HOST"
    assert name != pod["metadata"]["name"]  # helm shows both, each by its name alone


@pytest.mark.parametrize(("status", "passes"), [(200, True), (503, False)])
def test_the_test_passes_where_the_health_endpoint_does(render: Render, status: int, passes: bool) -> None:
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == HEALTH_PATH else 404)
            self.end_headers()

    script, variable, *_ = one(render(), "Pod")["spec"]["containers"][0]["args"]
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ran = subprocess.run(
            [sys.executable, "-c", script, variable, "nowhere.invalid", str(server.server_port), "0"],
            env={variable: "127.0.0.1"},
            capture_output=True,
            text=True,
            check=False,
        )
        server.shutdown()
    assert (ran.returncode == 0) is passes, ran.stderr
    assert str(status) in ran.stdout + ran.stderr
