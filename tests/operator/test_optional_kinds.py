"""LeaderWorkerSets and InferencePools may come and go while the operator runs; unknown is not absent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from turbo_operator.controller import handlers, informer
from turbo_operator.controller.cache.store import Key
from turbo_operator.controller.handlers import Operator
from turbo_operator.controller.kube import Kube, KubeError, RefusedError
from turbo_operator.resources import INFERENCEPOOL, LEADERWORKERSET, Resource
from turbo_operator.settings import Settings

OPTIONAL = pytest.mark.parametrize("kind", [LEADERWORKERSET, INFERENCEPOOL], ids=lambda kind: kind.kind)
TD = {"namespace": "team", "name": "chat", "uid": "u", "resourceVersion": "1"}


class Server(Kube):
    """Answers whether there are objects of a kind by a list, the last of which stays; lists nothing."""

    def __init__(self, kind: Resource, *answers: bool | KubeError) -> None:
        self.kind, self.answers = kind, list(answers)
        self.refuses = False
        self.looks = 0  # at whether there are any

    async def serves(self, resource: Resource) -> bool:
        assert resource == self.kind
        self.looks += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, KubeError):
            raise answer
        return answer

    async def check_list(self, resource: Resource, namespace: str | None) -> None:
        if self.refuses:
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


async def followed(server: Server, *expected: bool) -> Operator:
    """An operator that has seen these, one after the other, once it knows whether there are any."""
    operator = Operator(Settings(runtime_image="runtime:1"), server)
    operator.cache.put_deployment({"kind": "TurboDeployment", "metadata": TD})
    of_groups = server.kind == LEADERWORKERSET
    kinds = operator._groups if of_groups else operator._pools
    task = asyncio.create_task(kinds.run())
    try:
        async with asyncio.timeout(10):
            await kinds.known.wait()
            for is_there in expected:
                while (  # noqa: ASYNC110  it is a field of the cache
                    operator.cache.has_groups if of_groups else operator.cache.has_pools
                ) != is_there:
                    await asyncio.sleep(0.005)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return operator


@OPTIONAL
async def test_a_discovery_that_fails_is_asked_again_before_anything_is_planned(kind: Resource) -> None:
    """Found in review: running groups would have been taken for absent, and another plan rolled out."""
    await followed(Server(kind, KubeError(503, "Unavailable", "later"), True), True)


@OPTIONAL
async def test_a_kind_that_is_removed_and_installed_again_is_noticed(kind: Resource) -> None:
    operator = await followed(Server(kind, True, True, False, False, True), True, False, True)
    assert operator.queue.num_waiting == 1, "whom it concerns is looked at again"
    assert list(operator.cache.deployments) == [Key("team", "chat")]


@OPTIONAL
async def test_a_kind_that_may_not_be_listed_holds_up_nothing(kind: Resource) -> None:
    server = Server(kind, True)
    server.refuses = True
    assert (await followed(server, False)).queue.num_waiting == 0


@OPTIONAL
async def test_a_namespace_that_may_not_be_listed_any_more_takes_the_kind_from_no_other(
    kind: Resource,
) -> None:
    """Found in review: the pools of all namespaces were removed when one of them had gone."""
    server = Server(kind, True)
    operator = Operator(Settings(runtime_image="runtime:1"), server)
    of_groups = kind == LEADERWORKERSET
    kinds = operator._groups if of_groups else operator._pools
    task = asyncio.create_task(kinds.run())
    try:
        async with asyncio.timeout(10):
            await kinds.known.wait()
            server.refuses, before = True, server.looks
            while server.looks < before + 3:  # noqa: ASYNC110  it is a field
                await asyncio.sleep(0.005)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert operator.cache.has_groups if of_groups else operator.cache.has_pools


async def test_objects_are_looked_at_though_it_is_not_known_whether_there_are_pools(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handlers, "OPTIONAL_WAIT_SECONDS", 0.05)
    operator = Operator(
        Settings(runtime_image="runtime:1"), Server(INFERENCEPOOL, KubeError(503, "", "later"))
    )
    task = asyncio.create_task(operator._pools.run())
    async with asyncio.timeout(10):
        await operator._pools_known()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
