"""The CustomResourceDefinitions as they are generated: bounded, and with messages that say what to write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from turbo_operator.api import crd

ROOT = Path(__file__).parents[2]


def test_generated_files_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main(["--check", f"--root={ROOT}"]) == 0, capsys.readouterr().err


def test_check_names_the_file_that_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main([f"--root={tmp_path}"]) == 0
    changed = tmp_path / "crds" / "turbodeployments.yaml"
    changed.write_text(changed.read_text().replace("maximum: 64", "maximum: 65"))
    assert crd.main(["--check", f"--root={tmp_path}"]) == 1
    assert "crds/turbodeployments.yaml" in capsys.readouterr().err


def _schemas(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, Mapping):
        if isinstance(node.get("type"), str) or "x-kubernetes-int-or-string" in node:
            yield node
        for member in node.values():
            yield from _schemas(member)


def test_everything_is_bounded() -> None:
    for definition in crd.definitions():
        root = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
        for schema in _schemas(root["spec"]):
            match schema.get("type"):
                case "string":
                    assert "maxLength" in schema or "enum" in schema, schema
                case "array":
                    assert "maxItems" in schema, schema
                case "object" if "additionalProperties" in schema:
                    assert "maxProperties" in schema, schema
                case "integer" if "enum" not in schema:
                    assert "minimum" in schema, schema
                    assert "maximum" in schema, schema


def test_every_rule_says_what_to_write() -> None:
    for definition in crd.definitions():
        for schema in _schemas(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]):
            for rule in schema.get("x-kubernetes-validations", []):
                assert rule["message"].split()[0] in {"write", "leave", "choose", "name"}, rule["message"]
