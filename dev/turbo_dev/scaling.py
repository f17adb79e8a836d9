"""From one replica to two under a crowd of clients and back, told as it happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .access import Access
from .clients import Clients
from .release import DEPLOYMENT

NUM_CLIENTS = 32  # with the steady one more than a pod decodes together
ENOUGH = 10  # answers after which a crowd has met both replicas
PATIENCE_SECONDS = 420.0
LOOK_SECONDS = 1.0
TELL_SECONDS = 15.0  # also where nothing has changed but the number of answers


@dataclass(frozen=True)
class Outcome:
    """The numbers of replicas that were wanted, one after the other, and how the requests ended meanwhile."""

    replicas: list[int]
    answered: int
    failed: int
    error: str | None  # of the last that failed


def up_and_down(access: Access, image: str, say: Callable[[str], None]) -> Outcome:
    """Send the example `NUM_CLIENTS` clients until two replicas answer, then one until one is left.

    `say` hears each new state. TimeoutError where one of them does not come.
    """
    watch = _Watch(access, say)
    watch.until(lambda status: status["replicas"] == status["readyReplicas"] == 1, "one replica answers")
    with Clients(access, image, 1) as steady:
        watch.crowds.append(steady)
        with Clients(access, image, NUM_CLIENTS) as crowd:
            watch.crowds.append(crowd)
            watch.until(lambda status: status["readyReplicas"] == 2, "two replicas answer")
            watch.until(_answers(crowd, ENOUGH), "both answer")
        watch.until(lambda status: status["replicas"] == 1, "one replica is left")
        watch.until(_answers(steady, 2), "it answers on")
    return Outcome(watch.replicas, watch.answered, watch.failed, steady.tally.error or crowd.tally.error)


def _answers(clients: Clients, more: int) -> Callable[[object], bool]:
    """Whether these clients have had so many more answers than now."""
    enough = clients.tally.answered + more
    return lambda _: clients.tally.answered >= enough


class _Watch:
    """The object's status, and the clients' tallies, at every look."""

    def __init__(self, access: Access, say: Callable[[str], None]) -> None:
        self._access, self._say = access, say
        self._told, self._told_at = "", 0.0
        self.crowds: list[Clients] = []
        self.replicas: list[int] = []  # wanted: each number that differs from the one before

    @property
    def answered(self) -> int:
        """Requests of all clients."""
        return sum(each.tally.answered for each in self.crowds)

    @property
    def failed(self) -> int:
        """Requests of all clients."""
        return sum(each.tally.failed for each in self.crowds)

    def until(self, holds: Callable[[dict[str, Any]], bool], what: str) -> None:
        """Look until it holds, and tell each new state once."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            status = self._access.get("td", DEPLOYMENT)["status"]
            self._tell(status)
            if holds(status):
                return
            if time.monotonic() > give_up:
                raise TimeoutError(f"not within {PATIENCE_SECONDS:.0f} s: {what}; last: {self._told}")
            time.sleep(LOOK_SECONDS)

    def _tell(self, status: dict[str, Any]) -> None:
        said = next(each for each in status["conditions"] if each["type"] == "ScalingActive")
        wanted = status["desiredReplicas"]
        if self.replicas[-1:] != [wanted]:
            self.replicas.append(wanted)
        state = f"{status['readyReplicas']}/{wanted} ready; {said['reason']}: {said['message']}"
        if state != self._told or time.monotonic() > self._told_at + TELL_SECONDS:
            self._told, self._told_at = state, time.monotonic()
            requests = f"{self.answered} requests answered, {self.failed} failed"
            self._say(f"   {time.strftime('%H:%M:%S')}  {state} ({requests})")
