"""Whether an object still is what we applied, read from `metadata.managedFields`. Pure.

The API server records who owns which field. Whoever changes or removes a field of ours becomes, or leaves
behind, another owner (or none): our entry then lacks a path that we want. So drift is a loss of ownership,
exactly: no comparison of values is needed, which defaults, normal forms of quantities and fields of others
would all make wrong. What others add to what pods are made of, or to whom traffic goes, is drift too.

Source: kubernetes.io/docs/reference/using-api/server-side-apply (field management), and the FieldsV1 format
of sigs.k8s.io/structured-merge-diff: `f:NAME` a field, `k:{...}` a list item by its keys, `v:...` an item
of a set.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from turbo_operator.api import FIELD_MANAGER

# Not owned by anybody: they say which object is meant.
_IDENTITY = {"apiVersion", "kind"}
_META_IDENTITY = {"name", "namespace", "uid", "resourceVersion"}


def owned_fields(managed: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return what our server-side apply owns of the main resource, as FieldsV1; empty when nothing."""
    for entry in managed:
        ours = entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply"
        if ours and not entry.get("subresource"):
            fields: Mapping[str, Any] = entry.get("fieldsV1", {})
            return fields
    return {}


def added_fields(kind: str, managed: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return paths below `spec` that others own, where they change what a child of the kind does."""
    entries = list(managed)
    ours = owned_fields(entries).get("f:spec", {})
    paths: set[str] = set()
    for entry in entries:
        # What a subresource writes is its own: a scale is missed by `owns`.
        if entry.get("manager") != FIELD_MANAGER and not entry.get("subresource"):
            paths.update(_beyond(entry.get("fieldsV1", {}).get("f:spec", {}), ours))
    return tuple(sorted(path for path in paths if _counts(kind, path)))


def build_replacement(body: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object with the manifest's spec and nothing else but annotations of others on its pods."""
    spec = copy.deepcopy(dict(manifest["spec"]))
    if manifest["kind"] == "Service":  # its type and what the API server has given it are not ours
        spec = {**body["spec"], **spec, "publishNotReadyAddresses": False}
    if template := body["spec"].get("template"):
        meta = spec["template"]["metadata"]
        annotations = template["metadata"].get("annotations") or {}
        meta["annotations"] = {**annotations, **(meta.get("annotations") or {})}
    return {**body, "spec": spec}


def _beyond(theirs: Mapping[str, Any], ours: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, node in theirs.items():
        here, parts = f"{path}/{name}", node.keys() - {"."}
        if name == ".":
            continue
        if name not in ours and not parts:
            yield here
        elif name not in ours or ours[name]:
            yield from _beyond(node, ours.get(name, {}), here)


def _counts(kind: str, path: str) -> bool:
    if kind == "Deployment":  # kubectl rollout restart annotates pods, and an upgrade of nodes may
        return not path.startswith(("/f:replicas", "/f:template/f:metadata/f:annotations"))
    if kind == "LeaderWorkerSet":  # whose webhook writes defaults beside it
        return path.startswith("/f:leaderWorkerTemplate")
    if kind == "Service":
        return path.startswith(("/f:selector", "/f:ports", "/f:publishNotReadyAddresses"))
    return kind in ("PodDisruptionBudget", "InferencePool")


def owns(fields: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether `fields` (FieldsV1) covers every field of a manifest."""
    meta = {name: part for name, part in manifest.get("metadata", {}).items() if name not in _META_IDENTITY}
    wanted = {name: part for name, part in manifest.items() if name not in _IDENTITY}
    wanted["metadata"] = meta or None
    return all(_covers(fields.get(f"f:{name}"), part) for name, part in wanted.items())


def _covers(fields: Mapping[str, Any] | None, value: Any) -> bool:
    """Whether `fields`, the node of `value`'s path, covers it: None is unowned, empty is owned as a whole."""
    if value is None:  # null asks for nothing
        return True
    if fields is None:
        return False
    if not fields:
        return True
    if isinstance(value, Mapping):
        return all(_covers(fields.get(f"f:{name}"), part) for name, part in value.items())
    if isinstance(value, list):
        return all(_covers(_item(fields, part), part) for part in value)
    return True


def _item(fields: Mapping[str, Any], item: Any) -> Mapping[str, Any] | None:
    """Return the node of one list item: by the keys it is identified by, or by its value in a set."""
    node: Mapping[str, Any]
    for name, node in fields.items():
        if name.startswith("k:") and isinstance(item, Mapping):
            keys = json.loads(name[2:])
            if all(item.get(key, _DEFAULT_KEYS.get(key)) == value for key, value in keys.items()):
                return node or {}
        elif name.startswith("v:") and json.loads(name[2:]) == item:
            return node or {}
    return None


# Keys of list items that the API server fills in before it compares.
_DEFAULT_KEYS = {"protocol": "TCP"}
