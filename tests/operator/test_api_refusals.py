"""Wrong objects are refused with a sentence that helps: by the API server, and by `parse` in its words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from turbo_dev.access import Access
from turbo_dev.shell import CommandError
from turbo_operator import api

NAMESPACE = "api-refusals"


class Wrong(NamedTuple):
    path: str  # of the field that the refusal must name
    message: str  # part of what the API server says
    spec: dict[str, Any]
    name: str = "wrong"
    schema: bool = False  # the schema's own words; else a rule of ours, so that `parse` says the same


CASES = yaml.safe_load((Path(__file__).parent / "refusals.yaml").read_text(encoding="utf-8"))
WRONG_OTHERS = {kind: {name: Wrong(**case) for name, case in cases.items()} for kind, cases in CASES.items()}
WRONG = WRONG_OTHERS.pop("TurboDeployment")


def deployment(spec: dict[str, Any], name: str = "good") -> dict[str, Any]:
    return {
        "apiVersion": api.API_VERSION,
        "kind": "TurboDeployment",
        "metadata": {"name": name},
        "spec": spec,
    }


@pytest.fixture(scope="module")
def cluster(api_server: Access) -> Access:
    api_server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    return api_server


@pytest.mark.cluster
@pytest.mark.parametrize("case", WRONG)
def test_api_server_refuses_and_says_what_to_write(cluster: Access, case: str) -> None:
    wrong = WRONG[case]
    with pytest.raises(CommandError) as refusal:
        cluster.kubectl(
            "create", "-n", NAMESPACE, "-f", "-", input=json.dumps(deployment(wrong.spec, wrong.name))
        )
    assert wrong.message in str(refusal.value)
    assert wrong.path in str(refusal.value)
    assert "evaluat" not in str(refusal.value)  # no sentence about a rule that could not be


@pytest.mark.parametrize("case", WRONG)
def test_parse_refuses_and_names_the_field(case: str) -> None:
    wrong = WRONG[case]
    with pytest.raises(api.InvalidObject) as refusal:
        api.parse(deployment(wrong.spec, wrong.name))
    assert refusal.value.problems[0].startswith(wrong.path)
    if not wrong.schema:
        assert wrong.message in refusal.value.problems[0]


# What an object with adapters may not have; one without any, by an empty list, may.
WITHOUT_ADAPTERS = {
    "gguf": {"model": {"uri": "pvc://models/tiny.gguf"}},
    "turbo": {"engine": {"type": "Turbo"}},
    "captured": {"capture": {"persistentVolumeClaim": {"claimName": "prompts"}}},
    "lora-flags": {"engine": {"type": "VLLM", "args": ["--enable-lora"]}},
}


@pytest.mark.cluster
@pytest.mark.parametrize("case", WITHOUT_ADAPTERS)
def test_the_api_server_takes_an_empty_list_of_adapters_as_none(cluster: Access, case: str) -> None:
    spec = {"model": {"uri": "hf://acme/tiny"}, "adapters": [], **WITHOUT_ADAPTERS[case]}
    cluster.kubectl("create", "-n", NAMESPACE, "-f", "-", input=json.dumps(deployment(spec, case)))


@pytest.mark.parametrize("case", WITHOUT_ADAPTERS)
def test_parse_takes_an_empty_list_of_adapters_as_none(case: str) -> None:
    spec = {"model": {"uri": "hf://acme/tiny"}, "adapters": [], **WITHOUT_ADAPTERS[case]}
    assert api.parse(deployment(spec, case)).spec.adapters == ()


def test_parse_names_every_wrong_field_at_once() -> None:
    with pytest.raises(api.InvalidObject) as refusal:
        api.parse(deployment({"model": {"uri": "x"}, "replicas": -1, "drain": {"timeout": "soon"}}))
    assert [problem.partition(":")[0] for problem in refusal.value.problems] == [
        "spec.model.uri",
        "spec.replicas",
        "spec.drain.timeout",
    ]


@pytest.mark.parametrize(
    "document", [None, [], "x", {"kind": "Pod"}, {"apiVersion": "v1", "kind": "TurboDeployment"}]
)
def test_parse_refuses_what_is_no_turbodeployment(document: object) -> None:
    with pytest.raises(api.InvalidObject):
        api.parse(document)


OTHER_KINDS = {
    "TurboAccelerator": api.parse_accelerator,
    "TurboBudget": api.parse_budget,
    "TurboDraft": api.parse_draft,
}
OTHERS = [(kind, case) for kind in OTHER_KINDS for case in WRONG_OTHERS[kind]]


def other(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": api.API_VERSION, "kind": kind, "metadata": {"name": "some"}, "spec": spec}


@pytest.mark.cluster
@pytest.mark.parametrize(("kind", "case"), OTHERS)
def test_api_server_refuses_wrong_objects_of_the_other_kinds(cluster: Access, kind: str, case: str) -> None:
    wrong = WRONG_OTHERS[kind][case]
    with pytest.raises(CommandError) as refusal:
        cluster.kubectl("create", "-n", NAMESPACE, "-f", "-", input=json.dumps(other(kind, wrong.spec)))
    assert wrong.message in str(refusal.value)
    assert wrong.path in str(refusal.value)


@pytest.mark.parametrize(("kind", "case"), OTHERS)
def test_parse_refuses_wrong_objects_of_the_other_kinds(kind: str, case: str) -> None:
    wrong = WRONG_OTHERS[kind][case]
    with pytest.raises(api.InvalidObject) as refusal:
        OTHER_KINDS[kind](other(kind, wrong.spec))
    assert refusal.value.problems[0].startswith(wrong.path)


def test_example_manifests_are_of_the_api() -> None:
    examples = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
    assert examples
    for path in examples:
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if document["kind"] == "TurboDeployment":
                api.parse(document)
            elif document["kind"] == "TurboAccelerator":
                api.parse_accelerator(document)
