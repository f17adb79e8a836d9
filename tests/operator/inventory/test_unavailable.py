"""An accelerator that a pod waits for in vain is passed over for a while, and a restart forgets nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.api import TurboDeployment, TurboDeploymentStatus, parse, rfc3339
from turbo_operator.inventory.unavailable import BACKOFF_TIMEOUTS, next_look, unavailable_until
from turbo_operator.snapshot import PodView

TIMEOUT = 60.0
BACKOFF = BACKOFF_TIMEOUTS * TIMEOUT
START = 1_700_000_000.0


def td(*known: tuple[str, float | str], accelerator: str = "h100") -> TurboDeployment:
    status = TurboDeploymentStatus.model_validate(
        {
            "plan": {"hash": "v1a", "accelerator": accelerator},
            "unavailableAccelerators": [
                {"accelerator": name, "expirationTime": until if isinstance(until, str) else rfc3339(until)}
                for name, until in known
            ],
        }
    )
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 3},
            "spec": {"model": {"uri": "pvc://models/chat"}, "accelerators": {"pendingTimeout": "60s"}},
            "status": status.dump(),
        }
    )


def pod(since: float | None = START, **more: Any) -> PodView:
    fields = {"plan_hash": "v1a", "pending_since": since} | more
    return PodView("p", phase="Pending", ready=False, ip=None, reason=None, message=None, **fields)


def test_a_wait_of_the_timeout_passes_the_accelerator_over_for_ten_of_them() -> None:
    assert unavailable_until(td(), [pod()], START + TIMEOUT - 1) == {}
    assert unavailable_until(td(), [pod()], START + TIMEOUT) == {"h100": START + BACKOFF}


@given(st.floats(TIMEOUT, 100 * BACKOFF))
def test_while_the_pod_goes_on_waiting_the_accelerator_stays_passed_over(waited: float) -> None:
    until = unavailable_until(td(), [pod()], START + waited)["h100"]
    assert START + waited < until <= START + waited + BACKOFF + 1


@given(st.lists(st.floats(0, 3 * BACKOFF), max_size=4), st.floats(0, 3 * BACKOFF))
def test_what_the_status_remembers_is_what_another_look_says(waits: list[float], later: float) -> None:
    """Once the pods have made way: a restart in between knows as much."""
    now = START + max(waits, default=0.0)
    first = unavailable_until(td(), [pod(START + max(waits, default=0.0) - each) for each in waits], now)
    again = unavailable_until(td(*first.items()), [], now + later)
    assert set(again) == {name for name, until in first.items() if int(until) > now + later}


@pytest.mark.parametrize(
    "other",
    [{"plan_hash": "v1older"}, {"terminating": True}, {"since": None}],
    ids=lambda each: next(iter(each)),
)
def test_pods_of_older_variants_and_those_that_go_or_run_say_nothing(other: dict[str, Any]) -> None:
    assert unavailable_until(td(), [pod(**other)], START + 10 * TIMEOUT) == {}


def test_what_the_status_says_is_believed_no_longer_than_a_wait_could_have_lasted() -> None:
    """A clock that was wrong or an edit by hand would keep a class away for years."""
    assert unavailable_until(td(("l4", "2036-01-19T08:30:00Z")), [], START) == {"l4": START + BACKOFF}
    assert unavailable_until(td(("l4", START + BACKOFF - 1)), [], START) == {"l4": START + BACKOFF - 1}


_zones = st.sampled_from(["", "Z", "+14:00", "-12:00"])
_instants = st.floats(0, 2 * START) | st.builds(
    lambda at, zone: at.isoformat() + zone, st.datetimes(), _zones
)


@given(st.lists(st.tuples(st.sampled_from(["h100", "l4"]), _instants | st.text(max_size=30)), max_size=4))
def test_whatever_the_status_says_ends_within_one_backoff_and_stays_so(
    known: list[tuple[str, float | str]],
) -> None:
    first = unavailable_until(td(*known), [pod()], START + TIMEOUT)
    assert all(START + TIMEOUT < until <= START + TIMEOUT + BACKOFF for until in first.values())
    # Written down, it does not move on with the clock.
    again = unavailable_until(td(*first.items()), [], START + TIMEOUT + 1)
    assert all(again[name] <= until for name, until in first.items() if name in again)


@pytest.mark.parametrize(
    "stamp", ["", "soon", "2023-11-14", "2023-13-40T00:00:00Z", "0001-01-01T00:00:00", "9999-12-31T23:59:60Z"]
)
def test_a_time_that_is_none_or_past_keeps_nothing_away(stamp: str) -> None:
    assert unavailable_until(td(("l4", stamp)), [], START) == {}
    assert next_look(td(("l4", stamp)), [], START) is None


def test_the_next_look_is_due_when_the_timeout_or_the_backoff_ends() -> None:
    assert next_look(td(), [], START) is None
    assert next_look(td(), [pod()], START + 10) == TIMEOUT - 10
    assert next_look(td(), [pod()], START + TIMEOUT) == BACKOFF - TIMEOUT
    assert next_look(td(("l4", START + 5)), [pod()], START) == 5
