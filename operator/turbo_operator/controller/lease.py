"""Contends for the operator's Lease, and fences its writes.

The Lease is renewed on a thread with an event loop and a connection of its own, so that a busy operator does
not lose it. An operator that loses it ends: what it knows may be old, and another one writes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from turbo_operator import metrics
from turbo_operator.controller import kube
from turbo_operator.controller.election import RENEW_SECONDS, RETRY_SECONDS, Election, released
from turbo_operator.controller.kube import ConflictError, Kube, KubeError, RefusedError
from turbo_operator.resources import LEASE

LOOK_SECONDS = 4.0  # for a read and a write: two may fail before a renewal is due

log = logging.getLogger(__name__)


class NoLeaseError(Exception):
    """This operator may not write, or not any more; the message says why."""


class LeaseHolder:
    """Contends for one Lease from `acquired` on, and gives it up at exit."""

    def __init__(self, namespace: str, name: str) -> None:
        self._place = {"namespace": namespace, "name": name}
        self._election = Election(f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}")
        self._loop = asyncio.get_running_loop()
        self._acquired, self._lost = asyncio.Event(), self._loop.create_future()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    async def __aenter__(self) -> LeaseHolder:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._lost.cancel()

    async def acquired(self) -> None:
        """Contend from now on, and wait until this operator may write; raises as `watch` does."""
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()
        acquired = asyncio.ensure_future(self._acquired.wait())
        try:
            await asyncio.wait((acquired, self._lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            acquired.cancel()
        if self._lost.done():
            self._lost.result()

    async def watch(self) -> None:
        """Wait until the Lease is lost; raises NoLeaseError, or what contending has raised."""
        await self._lost

    def seconds_left(self) -> float:
        """`Election.seconds_left`, now."""
        return self._election.seconds_left(time.monotonic())

    # on the thread

    def _run(self) -> None:
        try:
            asyncio.run(self._contend())
        except Exception as error:
            self._call(_set_exception, self._lost, error)
        finally:
            metrics.LEADER.set(0)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the operator's loop has ended already
            self._loop.call_soon_threadsafe(function, *arguments)

    async def _contend(self) -> None:
        async with kube.connect() as api:
            while not self._stopping.is_set():
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._look(api)
                except RefusedError as error:
                    if error.is_final and not self._election.held:  # a right is missing: no later look has it
                        raise NoLeaseError(
                            f"Nothing can be written without a Lease. {error.sentence}"
                        ) from error
                    log.warning("the Lease was not renewed: the API server refused", extra=self._where)
                except TimeoutError:
                    log.warning("the Lease was not renewed or read in time", extra=self._where)
                except KubeError as error:
                    log.warning("the Lease was not renewed or read: %s", error.message, extra=self._where)
                if self._election.held and self.seconds_left() <= 0:
                    self._election.lost()
                    raise NoLeaseError(
                        f"The Lease {self._where['object']} could not be renewed for {RENEW_SECONDS:.0f} s, "
                        "so another operator may take it; this one ends and restarts."
                    )
                await asyncio.to_thread(self._stopping.wait, RETRY_SECONDS)
            with suppress(KubeError, TimeoutError):  # then it runs out by itself
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._release(api)

    async def _look(self, api: Kube) -> None:
        """Take or renew the Lease, or see that it is another's. Raises NoLeaseError."""
        election = self._election
        lease = await api.find(LEASE, **self._place)
        if election.taken(lease):
            election.lost()
            raise NoLeaseError(
                f"Another operator has or had the Lease {self._where['object']}; this operator ends."
            )
        spec = election.wanted(lease, time.monotonic(), datetime.now(UTC))
        if spec is None:
            return
        sent_at = time.monotonic()
        try:
            if lease is None:
                await api.create(LEASE, {"metadata": self._place, "spec": spec})
            else:
                await api.replace(LEASE, {**lease, "spec": spec})
        except ConflictError:  # another was quicker: the next look tells who
            return
        first = not election.held
        election.written(sent_at)
        if first:
            log.info("leading", extra={**self._where, "identity": election.identity})
            metrics.LEADER.set(1)
            self._call(self._acquired.set)

    async def _release(self, api: Kube) -> None:
        if not self._election.held:
            return
        self._election.lost()
        lease = await api.find(LEASE, **self._place)
        if lease is not None and lease["spec"].get("holderIdentity") == self._election.identity:
            await api.replace(LEASE, {**lease, "spec": released(lease, datetime.now(UTC))})

    @property
    def _where(self) -> dict[str, str]:
        return {"object": "/".join(self._place.values())}


def _set_exception(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
