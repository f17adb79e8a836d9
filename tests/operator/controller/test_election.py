"""Of several operators one may write, whatever is late, lost or unanswered."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from turbo_operator.controller.election import LEASE_SECONDS, RENEW_SECONDS, Election, released

DATE = datetime(2026, 12, 1, 8, 30, tzinfo=UTC)


@dataclass
class Server:
    """Keeps one Lease, as an API server does: a write needs the version that it has."""

    lease: dict[str, Any] | None = None
    versions: int = 0

    def write(self, over: dict[str, Any] | None, spec: dict[str, Any]) -> bool:
        if over != self.lease:
            return False
        self.versions += 1
        self.lease = {"metadata": {"resourceVersion": str(self.versions)}, "spec": spec}
        return True


@dataclass
class Contender:
    server: Server
    election: Election
    clock: float  # how much it is ahead of the others'
    sent: tuple[float, dict[str, Any] | None, dict[str, Any]] | None = field(default=None)
    until: float = -math.inf  # the last of its writes is over, by the clock of the test

    def look(self, now: float) -> None:
        lease, self.sent = self.server.lease, None
        if self.election.taken(lease):
            self.election.lost()
        spec = self.election.wanted(lease, now + self.clock, DATE)
        if spec is not None:
            self.sent = now, lease, spec

    def arrive(self) -> bool:
        """What was sent reaches the API server; whether it takes it."""
        return self.sent is not None and self.server.write(*self.sent[1:])

    def answered(self) -> None:
        assert self.sent is not None
        self.election.written(self.sent[0] + self.clock)

    def write(self, now: float) -> None:
        """Begin as long a write as it may."""
        left = self.election.seconds_left(now + self.clock)
        if left > 0:
            self.until = max(self.until, now + left)


def contenders(clocks: list[float]) -> tuple[Server, list[Contender]]:
    server = Server()
    return server, [
        Contender(server, Election(f"operator-{number}"), clock) for number, clock in enumerate(clocks)
    ]


def take(contender: Contender, now: float) -> None:
    contender.look(now)
    assert contender.arrive()
    contender.answered()


# who looks, how long after the one before, how long its write and the answer are under way, and what becomes
# of them
looks = st.tuples(
    st.integers(0, 1),
    st.sampled_from([0.0, 1.0, 4.0, 14.0, 15.0]),
    st.sampled_from([0.0, 0.0, 2.0]),
    st.sampled_from([0.0, 0.0, 2.0]),
    st.sampled_from(["answered", "answered", "answered", "unanswered", "vanishes"]),
)


@settings(max_examples=300, deadline=None)
@given(st.integers(-1000, 1000), st.lists(looks, min_size=30, max_size=60))
def test_no_write_of_an_operator_is_under_way_while_another_may_write(
    clock: int, history: list[tuple[int, float, float, float, str]]
) -> None:
    _, both = contenders([0.0, clock])
    now = 0.0

    def pass_time(seconds: float) -> None:
        nonlocal now
        for part in (seconds / 2, seconds - seconds / 2):
            now += part
            for each in both:
                each.write(now)
            for each in both:
                if each.election.seconds_left(now + each.clock) > 0:
                    assert all(other.until <= now for other in both if other is not each)

    for number, seconds, sending, answering, outcome in history:
        one = both[number]
        pass_time(seconds)
        one.look(now)
        pass_time(sending)
        if outcome != "vanishes" and one.arrive():
            pass_time(answering)
            if outcome == "answered":
                one.answered()
                pass_time(0.0)


def test_an_operator_that_is_silent_is_replaced_after_as_long_as_the_lease_lasts_and_not_before() -> None:
    server, (first, second) = contenders([0.0, 1000.0])
    take(first, 0.0)
    for now in (1.0, 9.0, LEASE_SECONDS + 0.9):
        second.look(now)
        assert second.sent is None
    take(second, LEASE_SECONDS + 1.0)
    assert second.election.seconds_left(1000.0 + LEASE_SECONDS + 1.0) == LEASE_SECONDS
    assert server.lease is not None
    assert server.lease["spec"] == {
        "holderIdentity": "operator-1",
        "leaseDurationSeconds": LEASE_SECONDS,
        "acquireTime": "2026-12-01T08:30:00.000000Z",
        "renewTime": "2026-12-01T08:30:00.000000Z",
        "leaseTransitions": 1,
    }


def test_a_lease_that_was_given_up_is_taken_at_the_next_look_and_its_holder_of_then_has_lost_it() -> None:
    server, (first, second) = contenders([0.0, 0.0])
    take(first, 0.0)
    second.look(1.0)
    assert second.sent is None
    assert server.lease is not None
    assert server.write(server.lease, released(server.lease, DATE))
    assert first.election.taken(server.lease)
    take(second, 2.0)
    assert second.election.held
    assert not second.election.taken(server.lease)


def test_a_lease_that_somebody_deletes_is_lost() -> None:
    _, (first,) = contenders([0.0])
    take(first, 0.0)
    assert first.election.taken(None)


def test_no_write_begins_later_than_the_renewals_deadline_and_none_lasts_longer_than_the_lease() -> None:
    _, (first,) = contenders([0.0])
    take(first, 0.0)
    assert first.election.seconds_left(1.0) == LEASE_SECONDS - 1.0
    assert first.election.seconds_left(RENEW_SECONDS - 0.01) > 0.0
    assert first.election.seconds_left(RENEW_SECONDS) == 0.0


def test_a_renewal_keeps_when_the_lease_was_acquired_and_how_often_it_changed_hands() -> None:
    election = Election("operator-0")
    taken = election.wanted(None, 0.0, DATE)
    assert taken is not None
    lease = {"metadata": {"resourceVersion": "1"}, "spec": taken}
    renewed = election.wanted(lease, 1.0, DATE.replace(minute=31))
    assert renewed is not None
    assert renewed["acquireTime"] == taken["acquireTime"]
    assert renewed["renewTime"] == "2026-12-01T08:31:00.000000Z"
    assert renewed["leaseTransitions"] == taken["leaseTransitions"] == 0
