"""LeaderWorkerSets and InferencePools may come and go while the operator runs; unknown is not absent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from turbo_operator.controller import handlers, informer
from turbo_operator.controller.cache.store import Key
from turbo_operator.controller.handlers import Operator
from turbo_operator.controller.kube import Kube, KubeError, RefusedError
from turbo_operator.resources import INFERENCEPOOL, LEADERWORKERSET, TURBODEPLOYMENT, Resource
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Presence

OPTIONAL = pytest.mark.parametrize("kind", [LEADERWORKERSET, INFERENCEPOOL], ids=lambda kind: kind.kind)
TD = {"namespace": "team", "name": "chat", "uid": "u", "resourceVersion": "1"}
OF_TD = {"apiVersion": "serving.turbo.dev/v1alpha1", "kind": "TurboDeployment"}
POOLS = {("team", "InferencePool"), ("other", "InferencePool")}
OPERATOR_SETTINGS = Settings(runtime_image="runtime:1", namespaces=("team", "other"), apply_catalog=False)


def presence(operator: Operator, kind: Resource, namespace: str = "team") -> Presence:
    return operator.cache.presence(kind.kind, namespace)


class Server(Kube):
    """Answers whether there are objects of a kind by a list, the last of which stays; lists nothing."""

    def __init__(self, kind: Resource, *answers: bool | KubeError) -> None:
        self.kind, self.answers = kind, list(answers)
        self.refused: set[str | None] = set()  # namespaces, None being all
        self.looks = 0  # at whether there are any

    async def serves(self, resource: Resource) -> bool:
        assert resource == self.kind
        self.looks += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, KubeError):
            raise answer
        return answer

    async def check_list(self, resource: Resource, namespace: str | None) -> None:
        if resource == self.kind and namespace in self.refused:
            raise RefusedError(403, "Forbidden", f"may not list {resource.plural}")

    async def pages(self, *_: object) -> AsyncIterator[tuple[list[dict[str, Any]], str]]:
        yield [], "1"

    async def watch(self, *_: object) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        await asyncio.Event().wait()
        yield "", {}


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer, "OPTIONAL_SECONDS", 0.01)
    monkeypatch.setattr(informer, "RETRY_SECONDS", 0.01)


async def followed(server: Server, *expected: Presence) -> Operator:
    """An operator that has seen these, one after the other, once it knows whether there are any."""
    operator = Operator(Settings(runtime_image="runtime:1"), server)
    operator.cache.put_deployment({"kind": "TurboDeployment", "metadata": TD})
    kinds = operator._groups if server.kind == LEADERWORKERSET else operator._pools
    task = asyncio.create_task(kinds.run())
    try:
        async with asyncio.timeout(10):
            await kinds.known.wait()
            for each in expected:
                while presence(operator, server.kind) != each:  # noqa: ASYNC110  it is a field of the cache
                    await asyncio.sleep(0.005)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return operator


@OPTIONAL
async def test_a_discovery_that_fails_is_asked_again_before_anything_is_planned(kind: Resource) -> None:
    """Found in review: running groups would have been taken for absent, and another plan rolled out."""
    await followed(Server(kind, KubeError(503, "Unavailable", "later"), True), Presence.PRESENT)


@OPTIONAL
async def test_a_kind_that_is_removed_and_installed_again_is_noticed(kind: Resource) -> None:
    seen = Presence.PRESENT, Presence.ABSENT, Presence.PRESENT
    operator = await followed(Server(kind, True, True, False, False, True), *seen)
    assert operator.queue.num_waiting == 1, "whom it concerns is looked at again"
    assert list(operator.cache.deployments) == [Key("team", "chat")]


@OPTIONAL
async def test_a_kind_that_may_not_be_listed_holds_up_nothing(kind: Resource) -> None:
    server = Server(kind, True)
    server.refused = {None}
    await followed(server, Presence.REFUSED)


@OPTIONAL
async def test_a_namespace_that_may_not_be_listed_any_more_takes_the_kind_from_no_other(
    kind: Resource,
) -> None:
    """Found in review: the pools of all namespaces were removed when one of them had gone."""
    server = Server(kind, True)
    operator = Operator(Settings(runtime_image="runtime:1"), server)
    kinds = operator._groups if kind == LEADERWORKERSET else operator._pools
    task = asyncio.create_task(kinds.run())
    try:
        async with asyncio.timeout(10):
            await kinds.known.wait()
            server.refused, before = {None}, server.looks
            while server.looks < before + 3:  # noqa: ASYNC110  it is a field
                await asyncio.sleep(0.005)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert presence(operator, kind) == Presence.PRESENT


@OPTIONAL
async def test_a_namespace_that_may_not_be_listed_at_the_start_has_the_kind_once_it_may(
    kind: Resource,
) -> None:
    server = Server(kind, True)
    server.refused = {"other"}
    operator = Operator(OPERATOR_SETTINGS, server)
    kinds = operator._groups if kind == LEADERWORKERSET else operator._pools
    task = asyncio.create_task(kinds.run())
    try:
        async with asyncio.timeout(10):
            await kinds.known.wait()
            assert presence(operator, kind) == Presence.PRESENT
            assert presence(operator, kind, "other") == Presence.REFUSED
            server.refused.clear()
            while presence(operator, kind, "other") != Presence.PRESENT:  # noqa: ASYNC110  it is a field
                await asyncio.sleep(0.005)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Cluster(Server):
    """Has an object with routing Gateway in each of two namespaces, and the pool of the one in `team`.

    Discovery fails until `answers` are others. Of a list of pools comes what `pages_of` gives by namespace:
    None never comes, a KubeError fails.
    """

    def __init__(self, *answers: bool | KubeError) -> None:
        super().__init__(INFERENCEPOOL, *answers)
        self.version = 10
        self.pages_of: dict[str, list[list[dict[str, Any]] | KubeError | None]] = {
            "team": [[self.pool]],
            "other": [[]],
        }
        self.deleted: list[str] = []
        self.applied: list[tuple[str, str]] = []
        self.statuses: dict[str, dict[str, Any]] = {}

    @property
    def pool(self) -> dict[str, Any]:
        owner = {"kind": "TurboDeployment", "name": "chat", "uid": "team", "controller": True}
        meta = {"namespace": "team", "name": "chat", "uid": "pool", "resourceVersion": "2"}
        return {"kind": "InferencePool", "metadata": {**meta, "ownerReferences": [owner]}, "spec": {}}

    def deployment(self, namespace: str) -> dict[str, Any]:
        meta = {"namespace": namespace, "name": "chat", "uid": namespace, "resourceVersion": "1"}
        spec = {"model": {"uri": "hf://acme/model"}, "routing": "Gateway"}
        return {**OF_TD, "metadata": {**meta, "generation": 1}, "spec": spec}

    async def serves(self, resource: Resource) -> bool:
        return resource == self.kind and await super().serves(resource)

    async def pages(
        self, resource: Resource, namespace: str | None, selectors: Any = ()
    ) -> AsyncIterator[tuple[list[dict[str, Any]], str]]:
        if dict(selectors).get("fieldSelector"):
            is_pool = (resource, namespace) == (INFERENCEPOOL, "team")
            yield [self.pool] if is_pool else [], "9"
        elif resource == INFERENCEPOOL:
            for page in self.pages_of[str(namespace)]:
                if isinstance(page, KubeError):
                    raise page
                if page is None:
                    await asyncio.Event().wait()
                yield page or [], "9"
        else:
            yield [self.deployment(str(namespace))] if resource == TURBODEPLOYMENT else [], "9"

    async def apply(
        self, resource: Resource, wanted: Mapping[str, Any], subresource: str = "", *, force: bool = True
    ) -> dict[str, Any]:
        namespace, self.version = wanted["metadata"]["namespace"], self.version + 1
        own = {"resourceVersion": str(self.version)}
        if subresource:
            self.statuses[namespace] = wanted["status"]
            whole = self.deployment(namespace)
            return {**whole, "metadata": {**whole["metadata"], **own}, "status": wanted["status"]}
        self.applied.append((namespace, resource.kind))
        uid = "pool" if resource == INFERENCEPOOL else resource.kind
        return {**wanted, "kind": resource.kind, "metadata": {**wanted["metadata"], "uid": uid, **own}}

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        self.deleted.append(resource.kind)

    def said(self, namespace: str) -> dict[str, tuple[str, str]]:
        """The status and message of each condition."""
        found = self.statuses.get(namespace, {}).get("conditions", [])
        return {each["type"]: (each["status"], each["message"]) for each in found}


@asynccontextmanager
async def started(cluster: Cluster) -> AsyncIterator[Operator]:
    """An operator with all that it runs but the framework."""
    operator = Operator(OPERATOR_SETTINGS, cluster)
    follow = [reflector.run() for reflector in operator._reflectors]
    follow += [operator._reflect_pods(reflector) for reflector in operator._pods]
    follow += [lister.relist(60.0) for lister in operator._relisted]
    follow += [operator._groups.run(), operator._pools.run(), operator._work()]
    tasks = [asyncio.create_task(each) for each in follow]
    try:
        async with asyncio.timeout(20):
            yield operator
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(done: Callable[[], object]) -> None:
    while not done():  # noqa: ASYNC110  it is a field
        await asyncio.sleep(0.005)


async def test_objects_are_looked_at_though_it_is_not_known_whether_there_are_pools_and_a_late_one_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found in review: the list woke a worker that took the kind for absent still, and deleted it."""
    monkeypatch.setattr(handlers, "OPTIONAL_WAIT_SECONDS", 0.05)
    cluster = Cluster(KubeError(503, "", "later"))
    async with started(cluster) as operator:
        await until(lambda: cluster.said("team"))
        assert ("team", "InferencePool") not in cluster.applied
        assert cluster.said("team")["PoolAccepted"][0] == "Unknown"
        cluster.answers = [True]
        await until(lambda: cluster.deleted or {*cluster.applied} >= POOLS)
        assert cluster.deleted == []
        await until(operator._pools.known.is_set)
        await until(lambda: "No gateway" in cluster.said("team").get("PoolAccepted", ("", ""))[1])
    assert cluster.deleted == []


@pytest.mark.parametrize("case", ["its second page fails", "that of another namespace never comes"])
async def test_a_pool_stays_though_a_list_of_pools_never_ends(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in review: what one page had shown was deleted while another one was awaited."""
    monkeypatch.setattr(handlers, "OPTIONAL_WAIT_SECONDS", 0.3)
    cluster = Cluster(True)
    if case == "its second page fails":
        cluster.pages_of["team"].append(KubeError(500, "", "no second page"))
    else:
        cluster.pages_of["other"] = [None]
    async with started(cluster) as operator:
        await until(lambda: cluster.deleted or {*cluster.applied} >= POOLS)
        assert not operator._pools.known.is_set()
    assert cluster.deleted == []


async def test_a_namespace_that_may_not_be_listed_takes_the_pools_from_no_other_after_a_restart() -> None:
    """Found in review: every object with routing Gateway stalled, and was to install what was installed."""
    cluster = Cluster(True)
    cluster.refused = {"other"}
    async with started(cluster):
        await until(lambda: cluster.said("team") and cluster.said("other"))
        await until(lambda: ("team", "InferencePool") in cluster.applied)
        stalled = cluster.said("other")["Stalled"]
        assert cluster.said("team")["Stalled"][0] == "False"
        assert stalled[0] == "True"
        assert "right to list and watch inferencepools" in stalled[1]
        assert "install" not in stalled[1]
        assert ("other", "InferencePool") not in cluster.applied
        cluster.refused.clear()
        await until(lambda: {*cluster.applied} >= POOLS and cluster.said("other")["Stalled"][0] == "False")
    assert cluster.deleted == []
