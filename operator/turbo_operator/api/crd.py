"""Writes the CustomResourceDefinitions for `kubectl apply` (crds/) and for the chart from the API's records.

`python -m turbo_operator.api.crd` writes; with `--check` it exits 1 and names the files that differ.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from turbo_operator.api import (
    GROUP,
    PLURALS,
    VERSION,
    TurboAccelerator,
    TurboBudget,
    TurboDeployment,
    TurboDraft,
)
from turbo_operator.api.validation import CEL_RULES, Record

_NOTE = "# Generated from turbo_operator.api by `make generate`; change the records there instead.\n"

_DEPLOYMENT_COLUMNS = (
    ("Model", ".spec.model.uri", 0),
    ("Engine", ".status.plan.engine", 0),
    ("Accelerator", ".status.plan.accelerator", 0),
    ("Desired", ".status.desiredReplicas", 0),
    ("Ready", ".status.readyReplicas", 0),
    ("Reason", '.status.conditions[?(@.type=="Ready")].reason', 0),  # all that an object without a plan has
    ("Method", ".status.plan.method", 0),
    ("Draft", ".status.draft.version", 0),
    ("Speedup", ".status.observed.speedup", 0),
    ("$/1M", ".status.plan.predicted.costPerMillionTokens", 0),
    ("Acceptance", ".status.observed.acceptanceLength", 1),
    ("$/h", ".status.observed.costPerHour", 1),
    ("Targets", '.status.conditions[?(@.type=="TargetsMet")].reason', 1),
    ("Plan", ".status.plan.hash", 1),
    ("URL", ".status.url", 1),
)
_ACCELERATOR_COLUMNS = (
    ("Resource", ".spec.resourceName", 0),
    ("Memory", ".spec.memory", 0),
    ("Nodes", ".status.nodes", 0),
    ("Available", ".status.available", 0),
    ("$/h", ".spec.pricing.perAcceleratorHour.onDemand", 0),
    ("Price from", ".spec.pricing.source", 0),
    ("Quantity", ".spec.quantity", 1),
    ("Allocatable", ".status.allocatable", 1),
    ("Spot $/h", ".spec.pricing.perAcceleratorHour.spot", 1),
    ("Price of", ".spec.pricing.asOf", 1),
)
_DRAFT_COLUMNS = (
    ("Method", ".spec.method", 0),
    ("Version", ".spec.version", 0),
    ("Domain", ".spec.domain", 0),
    ("Claim", ".spec.location.claimName", 1),
    ("Path", ".spec.location.path", 1),
)
_BUDGET_COLUMNS = (
    ("Max $/h", ".spec.maxPerHour", 0),
    ("In use $/h", ".status.inUse.perHour", 0),
    ("Committed $/h", ".status.committed.perHour", 0),
    ("Max accelerators", ".spec.accelerators.maxTotal", 0),
    ("Accelerators", ".status.inUse.accelerators", 0),
    ("Within", '.status.conditions[?(@.type=="WithinBudget")].status', 0),
)
_SCALE = {
    "specReplicasPath": ".spec.replicas",
    "statusReplicasPath": ".status.replicas",
    "labelSelectorPath": ".status.selector",
}
_CHART_METADATA = """\
  labels:
    {{- include "turbo.labels" . | nindent 4 }}
  {{- if .Values.crds.keep }}
  annotations:
    helm.sh/resource-policy: keep
  {{- end }}
"""
_ATOMIC = {"x-kubernetes-list-type": "atomic"}
_INTEGERS = ("Desired", "Ready", "Nodes", "Available", "Allocatable", "Max accelerators", "Accelerators")
_COLUMN_TYPES = dict.fromkeys(_INTEGERS, "integer")


def definitions() -> list[dict[str, Any]]:
    """The CustomResourceDefinitions of all kinds, as JSON."""
    accelerator = _definition(TurboAccelerator, "Cluster", "ta", _ACCELERATOR_COLUMNS, {"status": {}})
    subresources = {"status": {}, "scale": _SCALE}
    deployment = _definition(TurboDeployment, "Namespaced", "td", _DEPLOYMENT_COLUMNS, subresources)
    deployment["spec"]["names"]["categories"] = ["all", "turbo"]
    budget = _definition(TurboBudget, "Namespaced", "tb", _BUDGET_COLUMNS, {"status": {}})
    draft = _definition(TurboDraft, "Namespaced", "tdr", _DRAFT_COLUMNS, {})
    return [accelerator, budget, deployment, draft]


def _definition(
    record: type[Record],
    scope: str,
    short_name: str,
    columns: Sequence[tuple[str, str, int]],
    subresources: Mapping[str, Any],
) -> dict[str, Any]:
    kind = record.__name__
    document = record.model_json_schema(mode="serialization", schema_generator=_WithoutNull)
    schema = _convert(document, document.get("$defs", {}))
    schema["properties"] |= {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
    schema["properties"]["metadata"] = {"type": "object"}
    schema["required"] = ["spec"]
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "additionalPrinterColumns": [
            {"name": name, "type": _COLUMN_TYPES.get(name, "string"), "jsonPath": path}
            | ({"priority": priority} if priority else {})
            for name, path, priority in columns
        ]
        + [{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
        **({"subresources": subresources} if subresources else {}),
    }
    names = {
        "kind": kind,
        "listKind": f"{kind}List",
        "plural": PLURALS[kind],
        "singular": kind.lower(),
        "shortNames": [short_name],
        "categories": ["turbo"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURALS[kind]}.{GROUP}"},
        "spec": {"group": GROUP, "scope": scope, "names": names, "versions": [version]},
    }


class _WithoutNull(GenerateJsonSchema):
    """Absent is the only nothing."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def _convert(node: Mapping[str, Any], references: Mapping[str, Any]) -> dict[str, Any]:
    """The structural schema of a node: references inlined, outer keywords before those referred to."""
    if "$ref" in node:
        node = {**references[node["$ref"].rpartition("/")[2]], **node}
    if "anyOf" in node:
        raise ValueError(f"a CRD has no unions of types: {node['anyOf']}")
    keywords = ("type", "description", "default", "format", "enum")
    out = {key: node[key] for key in keywords if node.get(key) is not None}
    if "const" in node:
        out["enum"] = [node["const"]]
    others = ("min", "max", "x-kubernetes-int-or-string", "x-kubernetes-map-type", CEL_RULES)
    out |= {key: value for key, value in node.items() if key.startswith(others)}
    if node.get("type") == "integer":
        out.setdefault("format", "int32")
    if node.get("type") == "array":
        keys = node.get("x-kubernetes-list-map-keys")
        out |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys} if keys else _ATOMIC
        if not out.get("default"):
            out.pop("default", None)  # an absent list is an empty one
        out["items"] = _convert(node["items"], references)
    if isinstance(node.get("additionalProperties"), Mapping):
        out["additionalProperties"] = _convert(node["additionalProperties"], references)
    if properties := node.get("properties"):
        required = node.get("required", [])
        out |= {"required": required} if required else {}
        out["properties"] = {}
        for name, member in properties.items():
            converted = out["properties"][name] = _convert(member, references)
            if "properties" in converted and "default" not in member and name not in [*required, "status"]:
                # Its defaults in full, since the API server tries its rules on the default as it stands here.
                inner = converted["properties"].items()
                converted["default"] = {key: value["default"] for key, value in inner if "default" in value}
    return out


def files() -> dict[str, str]:
    """What `make generate` writes: text by path below the repository's root."""
    written: dict[str, str] = {}
    for definition in definitions():
        name = f"{definition['spec']['names']['plural']}.yaml"
        written[f"crds/{name}"] = _NOTE + _yaml(definition)
        written[f"charts/turbo/templates/crds/{name}"] = _NOTE + _as_template(definition)
    return written


def _as_template(definition: Mapping[str, Any]) -> str:
    """The definition as a template of the chart: upgraded with it, kept with all objects on uninstall."""
    text = _yaml(definition)
    if "{{" in text:
        raise ValueError("a text of the API contains '{{', which Helm would take for its own")
    name = f"  name: {definition['metadata']['name']}\n"
    return "{{- if .Values.crds.install }}\n" + text.replace(name, name + _CHART_METADATA, 1) + "{{- end }}\n"


def _yaml(document: Mapping[str, Any]) -> str:
    copy = json.loads(json.dumps(document))  # in which no two parts are one, so that there are no anchors
    return yaml.safe_dump(copy, sort_keys=False, width=110, allow_unicode=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or compare them; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m turbo_operator.api.crd", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if a file differs")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository's root (default: here)")
    options = parser.parse_args(arguments)
    stale = False
    for name, text in files().items():
        path = options.root / name
        present = path.read_text(encoding="utf-8") if path.exists() else ""
        if present != text and options.check:
            stale = True
            lines, generated = present.splitlines(keepends=True), text.splitlines(keepends=True)
            sys.stderr.writelines(difflib.unified_diff(lines, generated, name, f"{name} (generated)"))
        elif present != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    if stale:
        print("generated files are out of date: run `make generate` and commit", file=sys.stderr)
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
