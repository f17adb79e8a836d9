"""`turbo plan` and input that is wrong: exit status 1 and a sentence that names the flag, file and field."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from turbo_dev.plan_files import MODEL, accelerator, deployment, written
from turbo_operator.cli import commands
from turbo_operator.yaml_text import documents


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"replicas": -1}, "spec.replicas"),
        ({"modle": {}}, "spec.modle"),
        ({"model": {"uri": "ftp://x"}}, "spec.model.uri"),
        ({"cost": {"maxPerHour": 3}}, "spec.cost.maxPerHour"),
        (
            {"model": {"uri": "pvc://claim/model"}},
            "document 1 (TurboDeployment): spec.model.uri: the shape of",
        ),
        ({"model": {"uri": "hf://HuggingFaceTB/SmolLM2-135-Instruct"}}, f"Did you mean {MODEL}?"),
        ({"targets": {"timeToFirstToken": {"max": 1000}}}, "max: write a duration like 120s, 2m or 25ms."),
        ({"replicas": "three"}, "spec.replicas: write a whole number, without quotes."),
        ({"scaling": {"mode": "Metric"}}, "spec.scaling.mode: write 'Planned', 'Metrics' or 'External'."),
        ({"accelerators": {"allowed": "h100"}}, "spec.accelerators.allowed: write a list, like [a, b]."),
        ({"cost": "3"}, "spec.cost: write its fields, like {name: value}."),
        ({"suspend": "yes"}, "spec.suspend: write true or false."),
        ({"scaling": {"minReplicas": 2000}}, "spec.scaling.minReplicas: write at most 1000."),
    ],
)
def test_bad_input_ends_with_1_and_names_the_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: dict[str, Any], said: str
) -> None:
    assert commands.plan(["-f", written(tmp_path, deployment(**spec))]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "x.yaml is no YAML: line 2, column 1: did not find expected node content."),
        ("\0", "is no YAML"),
        ("{a: 1, a: 2}", "is no YAML: line 1, column 8: a is written twice."),
        ("!!int many", "is no YAML: a value is not of the kind that its tag (!!) names."),
        ("[" * 5000, "is no YAML"),
        (
            "{kind: TurboDeployment, metadata: {name: a}}",
            "(TurboDeployment): apiVersion: write serving",
        ),
        ("kind: ConfigMap", "no object of kind TurboDeployment"),
        ("- 1", "this is no object: write its fields"),
        ("kind: [TurboDeployment]", "document 1: kind: write a name, like TurboDeployment."),
        ("{kind: TurboDeployment, metadata: 3}", "document 1: metadata: write its fields, like name: chat."),
        ("{kind: List, items: [1]}", "item 1: this is no object"),
        ("", "no object of kind TurboDeployment"),
    ],
)
def test_a_file_without_a_deployment_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert commands.plan(["-f", str(path)]) == 1
    assert said in capsys.readouterr().err


def test_a_missing_file_and_binary_weights_are_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.plan(["-f", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml: No such file or directory." in capsys.readouterr().err
    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"GGUF\xff\xfe\x00")
    assert commands.plan(["-f", written(tmp_path, deployment()), "--model", str(weights)]) == 1
    assert "turbo inspect" in capsys.readouterr().err
    assert commands.plan(["-f", written(tmp_path, deployment()), "--model", str(tmp_path)]) == 1
    assert f"--model {tmp_path}: there is no config.json in this folder" in capsys.readouterr().err
    for text in ("[" * 100_000, '{"hidden_size": ' + "9" * 6000 + "}", "{"):
        (config := tmp_path / "config.json").write_text(text)
        assert commands.plan(["-f", written(tmp_path, deployment()), "--model", str(tmp_path)]) == 1
        assert f"--model {config} is no JSON; give a config.json" in capsys.readouterr().err


def test_standard_input_that_is_closed_or_no_utf_8_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert commands.plan(["-f", "-"]) == 1
    assert "standard input is closed: name a file." in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    assert commands.plan(["-f", "-"]) == 1
    assert "standard input is no YAML: it is no UTF-8." in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["-f", "--catalog", "--nodes", "--model"])
def test_an_empty_name_is_bad_input_of_its_flag(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.plan(["-f", written(tmp_path, deployment()), flag, ""]) == 1
    assert f"turbo plan: {flag}: write " in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--catalog", "--nodes"])
def test_what_is_no_yaml_is_told_with_its_flag(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (junk := tmp_path / "junk").write_text("{\n")
    assert commands.plan(["-f", written(tmp_path, deployment()), flag, str(junk)]) == 1
    assert f"{flag} {junk} is no YAML: line 2, column 1: " in capsys.readouterr().err


def test_one_wrong_object_keeps_no_other_from_its_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown, wrong, nameless = deployment(model={"uri": "hf://x/y"}), deployment(replicas=-1), deployment()
    unknown["metadata"]["name"], wrong["metadata"]["name"] = "unknown", "wrong"
    del nameless["metadata"]["name"]
    file = written(tmp_path, unknown, wrong, deployment(), nameless)
    assert commands.plan(["-f", file, "-o", "json"]) == 1
    said = capsys.readouterr()
    assert [plan["name"] for plan in json.loads(said.out)] == ["chat"]
    first, second, third = said.err.splitlines()
    assert first.startswith(
        f"turbo plan: {file}, document 1 (TurboDeployment): spec.model.uri: the shape of hf://x/y"
    )
    assert second.startswith(f"turbo plan: {file}, document 2 (TurboDeployment): spec.replicas: ")
    assert f"{file}, document 4 (TurboDeployment): metadata.name" in third


def test_a_change_that_one_object_does_not_take_is_told_and_all_are_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = deployment(scaling={"maxReplicas": 3})
    few["metadata"]["name"] = "few"
    assert (
        commands.plan(
            ["-f", written(tmp_path, few, deployment()), "--what-if", "minReplicas=5", "-o", "json"]
        )
        == 1
    )
    said = capsys.readouterr()
    changes = {plan["name"]: len(plan.get("whatIf", ())) for plan in json.loads(said.out)}
    assert changes == {"few": 0, "chat": 1}
    assert "--what-if minReplicas=5: spec.scaling.minReplicas" in said.err


def test_a_field_that_is_merged_and_written_is_written_once() -> None:
    text = "{a: &a {x: 1}, d: {n: {b: &b {<<: *a, x: 2}}}, t: {<<: *b}, on: 2026-01-19}"
    [found] = documents(text)
    assert found["d"]["n"]["b"] == {"x": 2}
    assert "2026-01-19" in found.values()


def test_a_wrong_flag_is_bad_input_and_not_infeasible(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.plan(["--nonsense"]) == 1
    assert commands.plan(["--help"]) == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("speed=3", "there is no key 'speed'"),
        ("acelerators=h100", "did you mean accelerators?"),
        ("speculation", "write KEY=VALUE"),
        ("speculation=maybe", "write one of off, auto, required"),
        ("maxTotal=many", "write a whole number"),
        ("maxPerHour=cheap", "spec.cost.maxPerHour"),
        ("concurrency=0", "spec.workload.concurrency"),
    ],
)
def test_a_change_that_is_none_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: str, said: str
) -> None:
    assert commands.plan(["-f", written(tmp_path, deployment()), "--what-if", asked]) == 1
    assert f"--what-if {asked}: " in (refusal := capsys.readouterr().err)
    assert said in refusal


def test_a_catalog_without_accelerators_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, deployment())
    assert commands.plan(["-f", file, "--catalog", file]) == 1
    assert f"--catalog {file}: there is no object of kind TurboAccelerator" in capsys.readouterr().err


@pytest.mark.parametrize("twice", [deployment(), accelerator("mine", "1.00")], ids=["deployment", "class"])
def test_two_objects_of_one_name_are_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], twice: dict[str, Any]
) -> None:
    file = written(tmp_path, twice, twice)
    assert commands.plan(["-f", file]) == 1
    assert f"document 2 ({twice['kind']}): there is a {twice['kind']} " in (said := capsys.readouterr().err)
    assert f"in {file}, document 1 already" in said
