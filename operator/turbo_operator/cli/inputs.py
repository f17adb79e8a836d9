"""Questions for the planner from a command line: files alone, files against a cluster, or a live object."""

from __future__ import annotations

import argparse
import difflib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from turbo_operator import api
from turbo_operator.catalog import UnknownShapeError, catalog, shapes, shipped_objects
from turbo_operator.cli import manifests
from turbo_operator.cli.manifests import BadInputError, Found
from turbo_operator.cli.plan_query import Question, unread_replicas
from turbo_operator.controller.cache.store import Key
from turbo_operator.inventory.supply import Owner, supply_of
from turbo_operator.inventory.usage import READERS
from turbo_operator.snapshot import Snapshot
from turbo_runtime.contract.documents import ModelShape

_CONFIG = "config.json"


@dataclass(slots=True)
class PlanQueries:
    """What can be planned, from which files, and what is wrong with other TurboDeployments of a file."""

    deployments: tuple[Found, ...] = ()
    overlay: tuple[Found, ...] = ()  # TurboAccelerators over or in addition to others
    model: str | None = None  # where the shape of the deployments is read from
    shape: ModelShape | None = None  # which it has
    notes: list[str] = field(default_factory=list)  # on what is in the files and is not read
    questions: list[Question] = field(default_factory=list)
    problems: list[BadInputError] = field(default_factory=list)

    @contextmanager
    def keeping_problems(self) -> Iterator[None]:
        """Collect what is wrong with one object, so that others are planned."""
        try:
            yield
        except BadInputError as error:
            self.problems.append(error)

    def add(
        self, item: Found, body: dict[str, Any], td: api.TurboDeployment, snapshot: Snapshot, now: float
    ) -> None:
        """Add the question of one object. Raises BadInputError where the shape of its model is unknown."""
        known = snapshot.model.shape if snapshot.model else None
        try:
            shape = self.shape or known or _shipped_shape(td)
        except BadInputError as error:
            raise item.error(str(error)) from error
        self.questions.append(Question(body, td, self.model or td.spec.model.uri, shape, snapshot, now))


def read(options: argparse.Namespace) -> PlanQueries:
    """Read the inputs that a command's options name. Raises BadInputError."""
    if "name" in options:  # of `turbo explain`
        return of_object(options.name, options.namespace, options.context)
    queries = given(options.file, options.catalog, options.nodes, options.model)
    if options.context is not None:
        queries = against_cluster(queries, options.context)
    else:
        queries = from_files(queries, options.nodes)
    if options.billing_unit is not None:
        is_node = options.billing_unit == "Node"
        queries.questions = [question.with_billing(is_node) for question in queries.questions]
    return queries


def given(
    files: Sequence[str],
    catalog_file: str | None = None,
    nodes_file: str | None = None,
    model: str | None = None,
) -> PlanQueries:
    """Read the files but for the nodes. Raises BadInputError."""
    if [*files, catalog_file, nodes_file].count("-") > 1:
        raise BadInputError("standard input can be read once: write - for one file, and name the others.")
    by_file = {file: tuple(manifests.read_objects(file)) for file in files}
    objects = manifests.unique(chain.from_iterable(by_file.values()))
    deployments = _of_kind(objects, api.TURBODEPLOYMENT, ", ".join(map(manifests.label, by_file)))
    overlay = tuple(item for item in objects if item.kind == api.TURBOACCELERATOR)
    if catalog_file is not None:
        listed = manifests.unique(manifests.read_objects(catalog_file, "--catalog"))
        label = f"--catalog {manifests.label(catalog_file)}"
        overlay = (*_of_kind(listed, api.TURBOACCELERATOR, label), *overlay)
    shape = None if model is None else _given_shape(model)
    unread = (_unread(found, file == nodes_file) for file, found in by_file.items())
    return PlanQueries(deployments, overlay, model, shape, [*chain.from_iterable(unread)])


def _of_kind(objects: tuple[Found, ...], kind: str, label: str) -> tuple[Found, ...]:
    matches = tuple(item for item in objects if item.kind == kind)
    if not matches:
        raise BadInputError(f"{label}: there is no object of kind {kind} in it.")
    return matches


def _unread(objects: tuple[Found, ...], are_nodes_read: bool) -> Iterator[str]:
    """Yield a sentence for each kind of object that has no effect."""
    first = {item.kind: item.place for item in reversed(objects)}
    for kind, place in sorted(first.items()):
        is_node_kind = kind in READERS
        if kind in (api.TURBODEPLOYMENT, api.TURBOACCELERATOR) or (is_node_kind and are_nodes_read):
            continue
        hint = f"{kind} is not read here; give it with --nodes." if is_node_kind else f"{kind} is not read."
        yield f"{place}: {hint}"


def from_files(queries: PlanQueries, nodes_file: str | None) -> PlanQueries:
    """Plan over the shipped catalog, and on the nodes of a file where one is given."""
    shipped = {body["metadata"]["name"]: body for body in shipped_objects()}
    accelerators = catalog() | manifests.overlay_accelerators(shipped, queries.overlay)
    inventory = None if nodes_file is None else manifests.read_inventory(nodes_file, accelerators)
    for item in queries.deployments:
        with queries.keeping_problems():
            td = _deployment(item, queries)
            owner = Owner(td.metadata.namespace, td.metadata.name)
            supply, free = (
                None if inventory is None else supply_of(inventory, user, td.spec.pod_template.spec)
                for user in (owner, owner.trainer)
            )
            snapshot = Snapshot(accelerators, supply, free=free)
            queries.add(item, item.body, td, snapshot, time.time())
    return queries


def against_cluster(queries: PlanQueries, context: str) -> PlanQueries:
    """Plan as the operator of the context's cluster would, were they applied now."""
    from turbo_operator.cli import cluster_reader

    written = []
    for item in queries.deployments:
        with queries.keeping_problems():
            written.append((item, _deployment(item, queries)))
    if not written:
        return queries
    cluster = cluster_reader.read_cluster(context, [item.namespace for item, _ in written])
    overlay = manifests.overlay_accelerators(cluster.accelerators, queries.overlay)
    now = time.time()
    for item, td in written:
        key = Key(item.namespace or cluster.namespace, td.metadata.name)
        existing = cluster.cache.deployments.get(key)
        body = item.body if existing is None else {**existing, "spec": item.body["spec"]}
        td = api.parse(body)
        with queries.keeping_problems():
            snapshot = cluster.snapshot(key, td, now, overlay)
            queries.add(item, body, td, snapshot, now)
    return queries


def _deployment(item: Found, queries: PlanQueries) -> api.TurboDeployment:
    """Parse it, and note replicas that nobody reads; the API server writes the default everywhere."""
    td = manifests.parse(item, api.parse)
    external = td.spec.scaling_mode == api.ScalingMode.EXTERNAL
    if not external and td.spec.replicas != api.TurboDeploymentSpec.model_fields["replicas"].default:
        queries.notes.append(f"{item.place}: {unread_replicas(td)}")
    return td


def of_object(name: str, namespace: str | None, context: str | None) -> PlanQueries:
    """Plan a live object as its operator does. Raises BadInputError where it or its model is unknown."""
    from turbo_operator.cli import cluster_reader

    cluster = cluster_reader.read_cluster(context, [namespace])
    key = Key(namespace or cluster.namespace, name)
    body = cluster.cache.deployments.get(key)
    if body is None:
        raise BadInputError(f"there is no {api.TURBODEPLOYMENT} {name} in namespace {key.namespace}.")
    try:
        td = api.parse(body)
    except api.InvalidObject as error:
        raise BadInputError(f"{key} ({api.TURBODEPLOYMENT}): {error}.") from error
    now = time.time()
    snapshot = cluster.snapshot(key, td, now)
    if snapshot.model is None:
        why = snapshot.model_error or "Its inspect Job is not done."
        raise BadInputError(f"{key} has no plan yet, since its model is unknown. {why}")
    question = Question(body, td, td.spec.model.uri, snapshot.model.shape, snapshot, now)
    return PlanQueries(questions=[question])


def _shipped_shape(td: api.TurboDeployment) -> ModelShape:
    """Return the shipped shape of the URI. Raises BadInputError."""
    model, hint = td.spec.model, ""
    if model.on_hub:
        if shape := shapes.shipped(model.hub_id):
            return shape
        hint = _nearest(model.hub_id)
    raise BadInputError(
        f"spec.model.uri: the shape of {model.uri} is not known without a cluster: give --model with its "
        f"config.json or with what `turbo inspect MODEL` prints.{hint}"
    )


def _nearest(hub_id: str) -> str:
    """Suggest the shipped shape that may be meant, or nothing."""
    near = difflib.get_close_matches(hub_id.lower(), shapes.spellings(), n=1, cutoff=0.8)
    return f" Did you mean {shapes.spellings()[near[0]]}?" if near else ""


def _given_shape(model: str) -> ModelShape:
    """Read the shape of `--model`. Raises BadInputError."""
    if not model:
        raise BadInputError("--model: write a folder, a config.json or a hub id.")
    path = Path(model)
    if path.is_dir():
        path /= _CONFIG
        if not path.exists():
            raise BadInputError(
                f"--model {model}: there is no {_CONFIG} in this folder; what `turbo inspect {model}` prints "
                "says the shape of weights."
            )
    if not path.exists():
        if shape := shapes.shipped(model):
            return shape
        problem = f"there is no such file, and no shipped shape of that name.{_nearest(model)}"
        raise BadInputError(f"--model {model}: {problem}")
    try:
        return shapes.from_document(path.read_text(encoding="utf-8"), str(path))
    except UnknownShapeError as error:
        raise BadInputError(f"--model {error}") from error
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"--model {path} is no text; what `turbo inspect {path}` prints says the shape of weights."
        ) from error
    except OSError as error:
        raise BadInputError(f"--model {path}: {error.strerror}.") from error
