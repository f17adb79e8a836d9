"""LeaderWorkerSets may be installed and removed while the operator runs; what is not known is not absent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from turbo_operator.controller import handlers
from turbo_operator.controller.handlers import Operator
from turbo_operator.controller.kube import Kube, KubeError, RefusedError
from turbo_operator.resources import Resource
from turbo_operator.settings import Settings


class Server(Kube):
    """Answers whether there are LeaderWorkerSets by a list, the last of which stays; lists nothing."""

    def __init__(self, *answers: bool | KubeError) -> None:
        self.answers = list(answers)
        self.refuses = False

    async def serves(self, resource: Resource) -> bool:
        assert resource.kind == "LeaderWorkerSet"
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
    monkeypatch.setattr(handlers, "GROUPS_SECONDS", 0.01)
    monkeypatch.setattr(handlers, "RETRY_SECONDS", 0.01)


async def followed(server: Server, *expected: bool) -> Operator:
    """An operator that has seen these, one after the other, once it knows whether there are any."""
    operator = Operator(Settings(runtime_image="runtime:1"), server)
    task = asyncio.create_task(operator._reflect_groups())
    try:
        async with asyncio.timeout(10):
            await operator._knows_groups.wait()
            for is_there in expected:
                while operator.cache.has_groups != is_there:  # noqa: ASYNC110  it is a field of the cache
                    await asyncio.sleep(0.005)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return operator


async def test_a_discovery_that_fails_is_asked_again_before_anything_is_planned() -> None:
    """Found in review: running groups would have been taken for absent, and another plan rolled out."""
    await followed(Server(KubeError(503, "Unavailable", "later"), True), True)


async def test_a_kind_that_is_removed_and_installed_again_is_noticed() -> None:
    await followed(Server(True, True, False, False, True), True, False, True)


async def test_a_kind_that_may_not_be_listed_holds_up_nothing() -> None:
    server = Server(True)
    server.refuses = True
    await followed(server, False)
