"""Kubernetes objects from YAML files, each with its place for errors, and an inventory of nodes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from turbo_operator import api
from turbo_operator.inventory.supply import ClusterInventory, take_stock
from turbo_operator.inventory.usage import READERS
from turbo_operator.snapshot import Accelerator
from turbo_operator.yaml_text import described, documents

Parsed = TypeVar("Parsed")

_REMEDY = ": write it as kubectl get -o yaml does."


class BadInputError(Exception):
    """Input that cannot be planned; the message is a sentence that names the file and the field."""


class Found(NamedTuple):
    """An object of a file."""

    place: str  # file, document and item, in words
    body: dict[str, Any]

    @property
    def kind(self) -> str:
        """The kind, `None` where it has none."""
        return str(self.body.get("kind"))

    @property
    def name(self) -> str | None:
        """The name, where it has one."""
        name = (self.body.get("metadata") or {}).get("name")
        return name if isinstance(name, str) and name else None

    @property
    def namespace(self) -> str | None:
        """The namespace, where it has one."""
        namespace: str | None = self.body["metadata"].get("namespace")
        return namespace

    def error(self, problem: str) -> BadInputError:
        """Build the error that names the object."""
        return BadInputError(f"{self.place} ({self.kind}): {problem}")


def read_objects(source: str, flag: str = "") -> Iterator[Found]:
    """Read the objects of a YAML file (- is standard input), those of a List too. Raises BadInputError."""
    if not source:
        raise BadInputError(f"{flag or '-f'}: write the name of a file, or - for standard input.")
    name = f"{flag} {label(source)}".strip()
    try:
        if source == "-" and sys.stdin is None:
            raise BadInputError("standard input is closed: name a file.")
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        parsed = documents(content.decode("utf-8"))
    except OSError as error:
        raise BadInputError(f"{name}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadInputError(f"{name} is no YAML: it is no UTF-8.") from error
    except yaml.YAMLError as error:
        raise BadInputError(f"{name} is no YAML: {described(error)}.") from error
    for index, document in enumerate(parsed, start=1):
        if document is None:
            continue
        place = f"{name}, document {index}"
        body = _check_object(place, document)
        items = body.get("items")
        if not isinstance(items, list) or not str(body.get("kind")).endswith("List"):
            yield Found(place, body)
            continue
        # `kubectl get KIND -o yaml` writes kind List; an API server's own list names it once.
        kind = str(body["kind"]).removesuffix("List")
        for number, item in enumerate(items, start=1):
            place = f"{name}, document {index}, item {number}"
            yield Found(place, {"kind": kind, **_check_object(place, item)})


def _check_object(place: str, document: object) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise BadInputError(f"{place}: this is no object: write its fields, kind and metadata among them.")
    if not isinstance(document.get("kind"), str | None):
        raise BadInputError(f"{place}: kind: write a name, like TurboDeployment.")
    if not isinstance(document.get("metadata"), dict | None):
        raise BadInputError(f"{place}: metadata: write its fields, like name: chat.")
    return document


def label(source: str) -> str:
    """Name a source in a sentence."""
    return "standard input" if source == "-" else source


def unique(objects: Iterable[Found]) -> tuple[Found, ...]:
    """Return the same. Raises BadInputError where two of our kinds share a name: one would be lost."""
    first: dict[tuple[object, ...], Found] = {}
    for item in (objects := tuple(objects)):
        # a TurboDeployment without a name is reported where it is planned, with the others of the file
        if item.kind not in api.PLURALS or (item.kind == api.TURBODEPLOYMENT and not item.name):
            continue
        name = require_name(item)
        before = first.setdefault((item.kind, item.namespace, name), item)
        if before is not item:
            place = f"{before.place} already: rename one, or leave it out."
            raise item.error(f"there is a {item.kind} {name} in {place}")
    return objects


def require_name(item: Found) -> str:
    """Return the object's name. Raises BadInputError where it has none."""
    if item.name is None:
        raise item.error("metadata.name: is required.")
    return item.name


def parse(item: Found, parser: Callable[[Mapping[str, Any]], Parsed]) -> Parsed:
    """Parse an object without its status. Raises BadInputError with the field's path."""
    if "apiVersion" not in item.body:
        raise item.error(f"apiVersion: write {api.API_VERSION}.")
    try:
        return parser({key: value for key, value in item.body.items() if key != "status"})
    except api.InvalidObject as error:
        raise item.error(f"{error}.") from error


def overlay_accelerators(
    existing: Mapping[str, Mapping[str, Any]], written: Iterable[Found]
) -> dict[str, Accelerator]:
    """Return the rows of the `written` objects by name, each over the one of its name in `existing` or before
    it, as `kubectl apply` would leave it. Raises BadInputError.
    """
    bodies, rows = dict(existing), {}
    for item in written:
        name, body = require_name(item), item.body
        if name in bodies:
            body = {**body, "spec": merge_patch(bodies[name].get("spec"), body.get("spec"))}
        bodies[name] = body
        rows[name] = Accelerator.of(parse(Found(item.place, body), api.parse_accelerator))
    return rows


def merge_patch(existing: Any, written: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386): maps field by field, null removes a field, all else replaces."""
    if not isinstance(written, Mapping):
        return written
    fields = dict(existing) if isinstance(existing, Mapping) else {}
    for name, value in written.items():
        if value is None:
            fields.pop(name, None)
        else:
            fields[name] = merge_patch(fields.get(name), value)
    return fields


def read_inventory(source: str, accelerators: Mapping[str, Accelerator]) -> ClusterInventory:
    """Read what a file's nodes have of each accelerator beside its pods and quotas. Raises BadInputError."""
    values: dict[str, list[Any]] = {kind: [] for kind in READERS}
    for item in read_objects(source, "--nodes"):
        if item.kind not in READERS:
            continue
        try:
            value = READERS[item.kind](item.body)
        except KeyError as error:
            raise item.error(f"there is no {error.args[0]}{_REMEDY}") from error
        except (TypeError, AttributeError) as error:
            raise item.error(f"a field is of another kind{_REMEDY}") from error
        except ValueError as error:
            raise item.error(f"{error}.") from error
        if value is not None:  # a pod that has ended, a quota that no serving pod falls under
            values[item.kind].append(value)
    if not values["Node"]:
        raise BadInputError(f"--nodes {label(source)}: there is no object of kind Node in it.")
    return take_stock(accelerators, values["Node"], values["Pod"], values["ResourceQuota"])
