"""TurboAccelerators of a file over those that are there, as `kubectl apply` would leave them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from turbo_operator.catalog import as_row
from turbo_operator.cli import manifests
from turbo_operator.cli.manifests import Found
from turbo_operator.snapshot import Accelerator


def laid_over(there: Mapping[str, Mapping[str, Any]], written: Iterable[Found]) -> dict[str, Accelerator]:
    """The rows of the objects of `written`, by name, each over the one of its name in `there` or before it.

    What an object leaves out stays as it is there. BadInputError names the file and the field that is wrong.
    """
    objects, rows = dict(there), {}
    for found in written:
        name = manifests.name_of(found)
        body = found.body
        if name in objects:
            body = {**body, "spec": merged(objects[name].get("spec"), body.get("spec"))}
        objects[name] = body
        rows[name] = as_row(manifests.accelerator(Found(found.place, body)))
    return rows


def merged(there: Any, written: Any) -> Any:
    """A JSON merge patch (RFC 7386): maps field by field, null takes a field away, all else replaces."""
    if not isinstance(written, Mapping):
        return written
    fields = dict(there) if isinstance(there, Mapping) else {}
    for name, value in written.items():
        if value is None:
            fields.pop(name, None)
        else:
            fields[name] = merged(fields.get(name), value)
    return fields
