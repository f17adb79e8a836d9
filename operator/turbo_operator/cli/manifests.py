"""Kubernetes objects from YAML files, each with its place for an error's sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from turbo_operator import api
from turbo_operator.cli.errors import BadInputError
from turbo_operator.yaml_text import described, documents


class Found(NamedTuple):
    """One object of a file."""

    place: str  # file, document and item, in words
    body: dict[str, Any]


def objects(source: str, flag: str = "") -> Iterator[Found]:
    """The objects of a YAML file (- is standard input), those of a List one by one; BadInputError if none.

    `flag` is what an error's sentence names before the file.
    """
    if not source:
        raise BadInputError(f"{flag or '-f'}: write the name of a file, or - for standard input.")
    name = f"{flag} {called(source)}".strip()
    try:
        parsed = documents(_bytes(source).decode("utf-8"))
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
        body = _object(place, document)
        items = body.get("items")
        if not isinstance(items, list) or not str(body.get("kind")).endswith("List"):
            yield Found(place, body)
            continue
        # `kubectl get KIND -o yaml` writes kind List; an API server's own list names it once.
        kind = str(body["kind"]).removesuffix("List")
        for number, item in enumerate(items, start=1):
            place = f"{name}, document {index}, item {number}"
            inner = _object(place, item)
            yield Found(place, inner if "kind" in inner else {**inner, "kind": kind})


def _bytes(source: str) -> bytes:
    if source != "-":
        return Path(source).read_bytes()
    if sys.stdin is None:
        raise BadInputError("standard input is closed: name a file.")
    return sys.stdin.buffer.read()


def called(source: str) -> str:
    """A source as a sentence calls it."""
    return "standard input" if source == "-" else source


def unique(found: Iterable[Found]) -> tuple[Found, ...]:
    """The same; BadInputError where two of ours have one name, since only one of them would be left."""
    first: dict[tuple[object, ...], Found] = {}
    for each in (found := tuple(found)):
        kind = each.body.get("kind")
        if kind not in api.PLURALS:
            continue
        if kind == api.TURBODEPLOYMENT and not _named(each):
            continue  # told where it is planned, with the others of the file
        name = name_of(each)
        before = first.setdefault((kind, each.body["metadata"].get("namespace"), name), each)
        if before is not each:
            raise BadInputError(
                f"{each.place} ({kind}): there is a {kind} {name} in {before.place} already: rename one, or "
                "leave it out."
            )
    return found


def of_kind(kind: str, found: Iterable[Found]) -> tuple[Found, ...]:
    """Those of one kind, in their order."""
    return tuple(each for each in found if each.body.get("kind") == kind)


def name_of(found: Found) -> str:
    """The object's name; BadInputError where it has none."""
    name = _named(found)
    if name is None:
        raise BadInputError(f"{found.place} ({found.body.get('kind')}): metadata.name: is required.")
    return name


def _named(found: Found) -> str | None:
    metadata = found.body.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) and name else None


def deployment(found: Found) -> api.TurboDeployment:
    """The TurboDeployment; BadInputError with the field's path."""
    try:
        return api.parse(_versioned(found))
    except api.InvalidObject as error:
        raise BadInputError(f"{found.place} ({api.TURBODEPLOYMENT}): {error}.") from error


def accelerator(found: Found) -> api.TurboAccelerator:
    """The TurboAccelerator; BadInputError with the field's path."""
    try:
        return api.parse_accelerator(_versioned(found))
    except api.InvalidObject as error:
        raise BadInputError(f"{found.place} ({api.TURBOACCELERATOR}): {error}.") from error


def _versioned(found: Found) -> dict[str, Any]:
    if "apiVersion" not in found.body:
        raise BadInputError(f"{found.place} ({found.body.get('kind')}): apiVersion: write {api.API_VERSION}.")
    return as_written(found.body)


def as_written(body: Mapping[str, Any]) -> dict[str, Any]:
    """The object without its status, which is the cluster's to say."""
    return {key: value for key, value in body.items() if key != "status"}


def _object(place: str, document: object) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise BadInputError(f"{place}: this is no object: write its fields, kind and metadata among them.")
    kind, metadata = document.get("kind"), document.get("metadata")
    if kind is not None and not isinstance(kind, str):
        raise BadInputError(f"{place}: kind: write a name, like TurboDeployment.")
    if metadata is not None and not isinstance(metadata, dict):
        raise BadInputError(f"{place}: metadata: write its fields, like name: chat.")
    return document
