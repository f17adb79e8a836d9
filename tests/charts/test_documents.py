"""What the chart says of itself: schema, tables and what registries of charts show."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from turbo_dev.documentation import chart as documentation
from turbo_operator.api import TurboDeployment

Render = Callable[..., list[dict[str, Any]]]


def test_values_schema_knows_exactly_the_values(chart: str) -> None:
    values = yaml.safe_load((Path(chart) / "values.yaml").read_text(encoding="utf-8"))
    schema = yaml.safe_load((Path(chart) / "values.schema.json").read_text(encoding="utf-8"))
    assert set(schema["properties"]) == set(values)


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        # Amounts are one value: which resources they name is the user's matter.
        if isinstance(value, dict) and value and name != "resources":
            found |= _leaves(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _comments(node: yaml.MappingNode, lines: list[str], prefix: str = "") -> dict[str, str]:
    found = {}
    for key, value in node.value:
        above = reversed(lines[: key.start_mark.line])
        comment = [line.strip(" #") for line in takewhile(lambda line: line.strip().startswith("#"), above)]
        found[prefix + key.value] = " ".join(reversed(comment))
        if isinstance(value, yaml.MappingNode):
            found |= _comments(value, lines, f"{prefix}{key.value}.")
    return found


def test_the_schema_describes_every_value_as_its_comment_does(chart: str) -> None:
    source = (Path(chart) / "values.yaml").read_text(encoding="utf-8")
    schema = json.loads((Path(chart) / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load(source)
    texts = {path: text for path, _, text in documentation.described(values, schema)}
    assert texts.keys() == _leaves(values).keys()
    comments = _comments(yaml.compose(source), source.splitlines())
    assert texts == {path: comments[path] for path in texts}


def test_readme_and_reference_have_the_table_of_now(chart: str) -> None:
    ((path, text),) = documentation.readme().items()
    assert path.read_text(encoding="utf-8") == text
    page = (Path(chart).parents[1] / "docs" / "reference" / "chart.md").read_text("utf-8")
    assert page.endswith(documentation.reference())


def test_artifact_hub_is_told_of_every_kind_and_of_an_example_that_is_one(render: Render, chart: str) -> None:
    described = yaml.safe_load((Path(chart) / "Chart.yaml").read_text(encoding="utf-8"))
    assert described["maintainers"] == [{"name": "Turbo"}]
    told = yaml.safe_load(described["annotations"]["artifacthub.io/crds"])
    crds = [item for item in render() if item["kind"] == "CustomResourceDefinition"]
    assert {(crd["kind"], crd["name"], crd["version"]) for crd in told} == {
        (crd["spec"]["names"]["kind"], crd["metadata"]["name"], crd["spec"]["versions"][0]["name"])
        for crd in crds
    }
    (example,) = yaml.safe_load(described["annotations"]["artifacthub.io/crdsExamples"])
    TurboDeployment.model_validate(example)


def test_a_published_chart_has_the_addresses_of_its_repository(
    helm: Callable[..., str], chart: str, tmp_path: Path
) -> None:
    copy, url = shutil.copytree(chart, tmp_path / "turbo"), "https://git.example/owner/name"
    script = Path(chart).parents[1] / ".github" / "describe_chart.py"
    command = [sys.executable, str(script), str(copy / "Chart.yaml"), url, "v1.2.3"]
    subprocess.run(command, check=True)
    told = yaml.safe_load((copy / "Chart.yaml").read_text(encoding="utf-8"))
    assert (told["home"], told["sources"]) == (url, [url])
    assert told["icon"] == f"{url}/raw/v1.2.3/charts/turbo/icon.svg"
    assert (copy / "icon.svg").is_file()
    assert len(yaml.safe_load(told["annotations"]["artifacthub.io/links"])) == 2
    assert "[INFO] Chart.yaml" not in helm("lint", "--strict", str(copy))
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0
