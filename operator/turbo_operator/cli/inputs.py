"""From what a command line names to questions: files alone, files against a cluster, a live object."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from turbo_operator import api
from turbo_operator.catalog import catalogue, shipped_objects
from turbo_operator.cli import manifests
from turbo_operator.cli.errors import BadInputError
from turbo_operator.cli.manifests import Found
from turbo_operator.cli.model import given_shape, shape_of
from turbo_operator.cli.nodes import KINDS, stock_of
from turbo_operator.cli.overlay import laid_over
from turbo_operator.cli.plan_query import Question, unread_replicas
from turbo_operator.controller.cache.store import Key
from turbo_operator.inventory.supply import Owner, supply_of
from turbo_operator.snapshot import Snapshot
from turbo_runtime.contract.model import ModelShape


@dataclass(frozen=True, slots=True)
class Given:
    """What is read from files: TurboDeployments, and TurboAccelerators over others or beside them."""

    deployments: tuple[Found, ...]
    overlay: tuple[Found, ...]
    model: str | None  # where their shape is read from
    shape: ModelShape | None  # which it has
    notes: tuple[str, ...] = ()  # on what is in the files and is not read


@dataclass(slots=True)
class PlanQueries:
    """What can be planned, and what is wrong with the other TurboDeployments of a file."""

    questions: list[Question] = field(default_factory=list)
    problems: list[BadInputError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # on what is not read

    @contextmanager
    def keeping_problems(self) -> Iterator[None]:
        """What is wrong with one object keeps no other from its plan."""
        try:
            yield
        except BadInputError as error:
            self.problems.append(error)


def given(
    file: str, catalogue_file: str | None = None, nodes_file: str | None = None, model: str | None = None
) -> Given:
    """The files' contents but for the nodes; BadInputError names the file and the field that is wrong."""
    if [file, catalogue_file, nodes_file].count("-") > 1:
        raise BadInputError("standard input can be read once: write - for one file, and name the others.")
    found = manifests.unique(manifests.objects(file))
    deployments = manifests.of_kind(api.TURBODEPLOYMENT, found)
    if not deployments:
        raise BadInputError(
            f"{manifests.called(file)}: there is no object of kind {api.TURBODEPLOYMENT} in it."
        )
    listed = (
        manifests.unique(manifests.objects(catalogue_file, "--catalogue"))
        if catalogue_file is not None
        else ()
    )
    catalogued = manifests.of_kind(api.TURBOACCELERATOR, listed)
    if catalogue_file and not catalogued:
        name = manifests.called(catalogue_file)
        raise BadInputError(f"--catalogue {name}: there is no object of kind {api.TURBOACCELERATOR} in it.")
    overlay = (*catalogued, *manifests.of_kind(api.TURBOACCELERATOR, found))
    shape = None if model is None else given_shape(model)
    return Given(deployments, overlay, model, shape, tuple(_unread(found, file == nodes_file)))


def _unread(found: tuple[Found, ...], are_nodes_read: bool) -> Iterator[str]:
    """A sentence for each kind of object that says nothing where it stands."""
    first = {str(each.body.get("kind")): each.place for each in reversed(found)}
    for kind, place in sorted(first.items()):
        if kind in (api.TURBODEPLOYMENT, api.TURBOACCELERATOR) or (kind in KINDS and are_nodes_read):
            continue
        hint = f"{kind} is not read here; give it with --nodes." if kind in KINDS else f"{kind} is not read."
        yield f"{place}: {hint}"


def from_files(given: Given, nodes_file: str | None) -> PlanQueries:
    """Over the shipped catalogue, and held against the nodes of a file where one is given."""
    shipped = {each["metadata"]["name"]: each for each in shipped_objects()}
    accelerators = catalogue() | laid_over(shipped, given.overlay)
    stock = stock_of(nodes_file, accelerators) if nodes_file is not None else None
    asked = PlanQueries(notes=[*given.notes])
    for found in given.deployments:
        with asked.keeping_problems():
            td = manifests.deployment(found)
            asked.notes += _idle(found, td)
            owner = Owner(td.metadata.namespace, td.metadata.name)
            supply = None if stock is None else supply_of(stock, owner, td.spec.template)
            free = None if stock is None else supply_of(stock, owner.trainer, td.spec.template)
            observed = Snapshot(accelerators, supply, free=free)
            asked.questions.append(_question(given, found, found.body, td, observed, time.time()))
    return asked


def against_cluster(given: Given, context: str) -> PlanQueries:
    """As the operator of the context's cluster would plan them, were they applied now."""
    from turbo_operator.cli import cluster_reader

    asked, written = PlanQueries(notes=[*given.notes]), []
    for found in given.deployments:
        with asked.keeping_problems():
            written.append((found, td := manifests.deployment(found)))
            asked.notes += _idle(found, td)
    if not written:
        return asked
    cluster = cluster_reader.listed(context, [_namespace(found.body) for found, _ in written])
    overlay, now = laid_over(cluster.accelerators, given.overlay), time.time()
    for found, td in written:
        key = Key(_namespace(found.body) or cluster.namespace, td.metadata.name)
        there = cluster.cache.deployments.get(key)
        body = found.body if there is None else {**there, "spec": found.body["spec"]}
        td = api.parse(body)
        with asked.keeping_problems():
            observed = cluster.look(key, td, now, overlay)
            asked.questions.append(_question(given, found, body, td, observed, now))
    return asked


def _idle(found: Found, td: api.TurboDeployment) -> list[str]:
    """A note where replicas are written that nobody reads; the API server writes the default everywhere."""
    external = td.spec.scaling_policy == api.ScalingPolicy.EXTERNAL
    default = api.TurboDeploymentSpec.model_fields["replicas"].default
    return [] if external or td.spec.replicas == default else [f"{found.place}: {unread_replicas(td)}"]


def _question(
    given: Given, found: Found, body: dict[str, Any], td: api.TurboDeployment, observed: Snapshot, now: float
) -> Question:
    known = observed.model.shape if observed.model else None
    try:
        shape = given.shape or known or shape_of(td)
    except BadInputError as error:
        raise BadInputError(f"{found.place} ({api.TURBODEPLOYMENT}): {error}") from error
    return Question(body, td, given.model or td.spec.model.uri, shape, observed, now)


def of_object(name: str, namespace: str | None, context: str | None) -> PlanQueries:
    """A live object as its operator sees it; BadInputError where there is none, or its model is unknown."""
    from turbo_operator.cli import cluster_reader

    cluster = cluster_reader.listed(context, [namespace])
    key = Key(namespace or cluster.namespace, name)
    body = cluster.cache.deployments.get(key)
    if body is None:
        raise BadInputError(f"there is no {api.TURBODEPLOYMENT} {name} in namespace {key.namespace}.")
    try:
        td = api.parse(body)
    except api.InvalidObject as error:
        raise BadInputError(f"{key} ({api.TURBODEPLOYMENT}): {error}.") from error
    now = time.time()
    observed = cluster.look(key, td, now)
    if observed.model is None:
        why = observed.model_error or "Its inspect Job is not done."
        raise BadInputError(f"{key} has no plan yet, since its model is unknown. {why}")
    return PlanQueries([Question(body, td, td.spec.model.uri, observed.model.shape, observed, now)])


def _namespace(body: dict[str, Any]) -> str | None:
    namespace: str | None = body["metadata"].get("namespace")
    return namespace
