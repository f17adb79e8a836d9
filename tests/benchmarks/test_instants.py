"""The judge of `chaos` sees what is wrong with an audit log."""

from __future__ import annotations

from typing import Any

from scale.instants import Instants

ONE, TWO = "account-one", "account-two"
_clock = iter(range(1, 1000))


def event(
    user: str, verb: str, resource: str, name: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    version = next(_clock)
    meta = {"resourceVersion": str(version), **((body or {}).get("metadata") or {})}
    return {
        "stageTimestamp": f"2026-01-01T00:00:00.{version:06d}Z",
        "user": {"username": user},
        "verb": verb,
        "objectRef": {"resource": resource, "name": name, "namespace": "team"},
        "responseStatus": {"code": 200},
        "responseObject": {**(body or {}), "metadata": meta},
    }


def lease(user: str, holder: str) -> dict[str, Any]:
    return event(user, "update", "leases", "turbo", {"spec": {"holderIdentity": holder}})


def deployment(user: str, name: str, replicas: int, verb: str = "patch") -> dict[str, Any]:
    labels = {"serving.turbo.dev/deployment": "chat", "serving.turbo.dev/plan-hash": name}
    body = {"metadata": {"labels": labels}, "spec": {"replicas": replicas}}
    return event(user, verb, "deployments", name, body)


def deleted(name: str) -> dict[str, Any]:
    answer = {"kind": "Status", "metadata": {}}
    return event("garbage-collector", "delete", "deployments", name) | {"responseObject": answer}


def judged(*events: dict[str, Any]) -> Instants:
    instants = Instants("team", frozenset({ONE, TWO}))
    instants.follow(events)
    return instants


def test_who_writes_without_the_lease_is_seen() -> None:
    handed_over = [lease(ONE, "a"), deployment(ONE, "v1", 1), lease(ONE, ""), lease(TWO, "b")]
    assert judged(*handed_over, deployment(TWO, "v1", 2)).out_of_turn == []
    late = [lease(ONE, "a"), deployment(ONE, "v1", 1), lease(TWO, "b"), deployment(ONE, "v1", 2)]
    (sentence,) = judged(*late).out_of_turn
    assert ONE in sentence
    assert len(judged(deployment(TWO, "v1", 1)).out_of_turn) == 1
    assert judged(deployment("somebody", "v1", 1)).out_of_turn == []


def test_the_most_replicas_of_any_instant_count_and_not_those_of_the_end() -> None:
    steps = [deployment(ONE, "v1", 3), deployment(ONE, "v2", 2), deployment(ONE, "v1", 0)]
    assert judged(*steps).most_replicas == 5
    assert judged(deployment(ONE, "v1", 3), deleted("v1"), deployment(ONE, "v2", 2)).most_replicas == 3


def test_a_deletion_counts_when_it_takes_place_although_its_answer_has_no_version() -> None:
    """Found in review: deletions came before all else that was read with them, and hid what was before."""
    instants = judged(deployment(ONE, "v1", 3))
    steps = [deployment(ONE, "v2", 1), deployment(ONE, "v1", 0), deleted("v1"), deployment(ONE, "v2", 3)]
    instants.follow(steps)
    assert (instants.most_replicas, instants.most_variants) == (4, 2)


def test_what_a_list_does_not_show_is_gone_though_the_log_has_lost_its_deletion() -> None:
    instants = judged(deployment(ONE, "v1", 3))
    instants.keep_only({"v2"})
    instants.follow([deployment(ONE, "v2", 2)])
    assert instants.most_replicas == 3


def test_variants_count_while_they_ask_for_replicas() -> None:
    steps = [deployment(ONE, f"v{number}", 1) for number in range(3)]
    assert judged(*steps).most_variants == 3
    assert (
        judged(deployment(ONE, "v1", 1), deployment(ONE, "v1", 0), deployment(ONE, "v2", 1)).most_variants
        == 1
    )


def test_a_refused_write_changes_nothing() -> None:
    refused = deployment(ONE, "v1", 9) | {"responseStatus": {"code": 409}}
    assert judged(refused).most_replicas == 0
    assert judged(refused).out_of_turn == []
