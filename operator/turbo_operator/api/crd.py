"""Writes the CustomResourceDefinitions for `kubectl apply` (crds/) and for the chart from the API's records.

`python -m turbo_operator.api.crd` writes; with `--check` it exits 1 and names the files that differ.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from turbo_operator.api import GROUP, PLURALS, VERSION, TurboAccelerator, TurboDeployment, TurboDraft
from turbo_operator.api.validation import CEL_RULES, Record

_NOTE = "# Generated from turbo_operator.api by `make generate`; change the records there instead.\n"

_DEPLOYMENT_COLUMNS = (
    ("Model", ".spec.model.uri", 0),
    ("Engine", ".status.plan.engine", 0),
    ("Accelerator", ".status.plan.accelerator", 0),
    ("Desired", ".status.desiredReplicas", 0),
    ("Ready", ".status.readyReplicas", 0),
    ("Status", '.status.conditions[?(@.type=="Ready")].reason', 0),  # all that an object without a plan has
    ("Method", ".status.plan.method", 0),
    ("Draft", ".status.draft.version", 0),
    ("Speedup", ".status.observed.speedup", 0),
    ("$/1M", ".status.plan.predicted.costPerMillionTokens", 0),
    ("$/h", ".status.plan.predicted.costPerHour", 1),
    ("Plan", ".status.plan.hash", 1),
    ("URL", ".status.url", 1),
)
_ACCELERATOR_COLUMNS = (
    ("Resource", ".spec.resourceName", 0),
    ("Memory", ".spec.memoryGiB", 0),
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
_COLUMN_TYPES = dict.fromkeys(("Desired", "Ready", "Nodes", "Available", "Allocatable"), "integer")


def definitions() -> list[dict[str, Any]]:
    """The CustomResourceDefinitions of all kinds, as JSON."""
    deployment = _definition(TurboDeployment, "Namespaced", ["td"], ["all", "turbo"], _DEPLOYMENT_COLUMNS)
    deployment["spec"]["versions"][0]["subresources"] = {
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    }
    accelerator = _definition(TurboAccelerator, "Cluster", ["ta"], ["turbo"], _ACCELERATOR_COLUMNS)
    accelerator["spec"]["versions"][0]["subresources"] = {"status": {}}
    draft = _definition(TurboDraft, "Namespaced", ["tdr"], ["turbo"], _DRAFT_COLUMNS)
    return [accelerator, deployment, draft]


def _definition(
    record: type[Record],
    scope: str,
    short_names: list[str],
    categories: list[str],
    columns: Sequence[tuple[str, str, int]],
) -> dict[str, Any]:
    kind = record.__name__
    schema = structural(record)
    schema["properties"]["apiVersion"] = {"type": "string"}
    schema["properties"]["kind"] = {"type": "string"}
    schema["properties"]["metadata"] = {"type": "object"}
    schema["required"] = ["spec"]
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "additionalPrinterColumns": [_column(*column) for column in columns]
        + [{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURALS[kind]}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": PLURALS[kind],
                "singular": kind.lower(),
                "shortNames": short_names,
                "categories": categories,
            },
            "versions": [version],
        },
    }


def _column(name: str, path: str, priority: int) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": _COLUMN_TYPES.get(name, "string"), "jsonPath": path}
    return {**column, "priority": priority} if priority else column


def structural(record: type[Record]) -> dict[str, Any]:
    """The structural schema of a record: references inlined, `null` gone (absent is the only nothing)."""
    document = record.model_json_schema(mode="serialization")
    return _convert(document, document.get("$defs", {}))


def _convert(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    node = _resolved(node, definitions)
    out: dict[str, Any] = {}
    for key in ("type", "description", "default", "format", "enum"):
        if key in node and not (key == "default" and node[key] is None):
            out[key] = node[key]
    if "const" in node:
        out["enum"] = [node["const"]]
    out.update(
        {
            key: value
            for key, value in node.items()
            if key.startswith(("min", "max")) or key in ("x-kubernetes-int-or-string", CEL_RULES)
        }
    )
    if out.get("type") == "integer":
        out.setdefault("format", "int32")
    if out.get("type") == "array":
        keys = node.get("x-kubernetes-list-map-keys")
        out["x-kubernetes-list-type"] = "map" if keys else "atomic"
        if keys:
            out["x-kubernetes-list-map-keys"] = keys
        if not out.get("default"):
            out.pop("default", None)  # an absent list is an empty one
        out["items"] = _convert(node["items"], definitions)
    if out.get("type") == "object":
        _convert_object(node, out, definitions)
    return out


def _convert_object(node: Mapping[str, Any], out: dict[str, Any], definitions: Mapping[str, Any]) -> None:
    if isinstance(node.get("additionalProperties"), Mapping):
        out["additionalProperties"] = _convert(node["additionalProperties"], definitions)
    properties = node.get("properties", {})
    if not properties:
        return
    required = [name for name in node.get("required", []) if not properties[name].get("readOnly")]
    if required:
        out["required"] = required
    out["properties"] = {}
    for name, member in properties.items():
        converted = _convert(member, definitions)
        if "properties" in converted and name not in required and "anyOf" not in member and name != "status":
            # Its defaults in full, since the API server tries its rules on the default as it stands here.
            converted["default"] = _defaults(converted)
        out["properties"][name] = converted


def _defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {name: member["default"] for name, member in schema["properties"].items() if "default" in member}


def _resolved(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """The node with `$ref` and `anyOf` with null replaced by what they stand for; outer keywords win."""
    outer = dict(node)
    inner: Mapping[str, Any] | None = None
    if "$ref" in outer:
        inner = definitions[outer.pop("$ref").rpartition("/")[2]]
    elif "anyOf" in outer:
        choices = [choice for choice in outer.pop("anyOf") if choice.get("type") != "null"]
        if len(choices) != 1:
            raise ValueError(f"a CRD has no unions of types: {choices}")
        inner = choices[0]
    if inner is None:
        return outer
    return _resolved({**inner, **outer}, definitions)


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
    head = (
        "  labels:\n"
        '    {{- include "turbo.labels" . | nindent 4 }}\n'
        "  {{- if .Values.crds.keep }}\n"
        "  annotations:\n"
        "    helm.sh/resource-policy: keep\n"
        "  {{- end }}\n"
    )
    return "{{- if .Values.crds.install }}\n" + text.replace(name, name + head, 1) + "{{- end }}\n"


def _yaml(document: Mapping[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Without anchors: two equal texts are two texts."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  the signature is PyYAML's
        return True


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
        if present == text:
            continue
        if options.check:
            stale = True
            difference = difflib.unified_diff(
                present.splitlines(keepends=True), text.splitlines(keepends=True), name, f"{name} (generated)"
            )
            sys.stderr.writelines(difference)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {name}")
    if stale:
        print("generated files are out of date: run `make generate` and commit", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
