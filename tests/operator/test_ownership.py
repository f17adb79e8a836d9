"""Ownership read from managedFields: the forms are those that a real API server wrote for a Deployment."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from turbo_operator.controller.field_ownership import added_fields, build_replacement, owned_fields, owns

WANTED: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {
        "name": "chat-1",
        "namespace": "team",
        "labels": {"app.kubernetes.io/name": "turbo"},
        "ownerReferences": [
            {"apiVersion": "a/v1", "kind": "K", "name": "chat", "uid": "u1", "controller": True}
        ],
    },
    "spec": {
        "replicas": 2,
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "turbo",
                        "args": ["--port=8000"],
                        "ports": [{"containerPort": 8000, "name": "http"}],
                        "env": [{"name": "HOME", "value": "/tmp"}],
                    }
                ],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
                "tolerations": [{"key": "gpu", "operator": "Exists"}],
                "terminationGracePeriodSeconds": None,
            }
        },
    },
}
OWNED: dict[str, Any] = {
    "f:metadata": {
        "f:labels": {"f:app.kubernetes.io/name": {}},
        "f:ownerReferences": {'k:{"uid":"u1"}': {}},
    },
    "f:spec": {
        "f:replicas": {},
        "f:template": {
            "f:spec": {
                "f:containers": {
                    'k:{"name":"turbo"}': {
                        ".": {},
                        "f:name": {},
                        "f:args": {},
                        "f:ports": {
                            'k:{"containerPort":8000,"protocol":"TCP"}': {
                                ".": {},
                                "f:containerPort": {},
                                "f:name": {},
                            }
                        },
                        "f:env": {'k:{"name":"HOME"}': {".": {}, "f:name": {}, "f:value": {}}},
                    }
                },
                "f:volumes": {'k:{"name":"tmp"}': {".": {}, "f:emptyDir": {}, "f:name": {}}},
                "f:tolerations": {},
            }
        },
    },
}


def without(fields: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """`fields` less one path; like the API server, no set of fields is left empty on the way."""
    rest = copy.deepcopy(fields)
    if len(path) > 1:
        rest[path[0]] = without(rest[path[0]], path[1:])
    if len(path) == 1 or not rest[path[0]]:
        del rest[path[0]]
    return rest


CONTAINER = ("f:spec", "f:template", "f:spec", "f:containers", 'k:{"name":"turbo"}')


def test_what_we_applied_is_ours() -> None:
    assert owns(OWNED, WANTED)


@pytest.mark.parametrize(
    "lost",
    [
        ("f:spec", "f:replicas"),
        ("f:metadata", "f:labels", "f:app.kubernetes.io/name"),
        ("f:metadata", "f:ownerReferences", 'k:{"uid":"u1"}'),
        (*CONTAINER, "f:args"),
        (*CONTAINER, "f:env", 'k:{"name":"HOME"}', "f:value"),
        (*CONTAINER, "f:ports", 'k:{"containerPort":8000,"protocol":"TCP"}'),
        ("f:spec", "f:template", "f:spec", "f:tolerations"),
        CONTAINER,
    ],
)
def test_a_field_that_somebody_took_or_removed_is_missed(lost: tuple[str, ...]) -> None:
    assert not owns(without(OWNED, lost), WANTED)


def test_only_our_own_apply_of_the_main_resource_counts() -> None:
    entries = [
        {"manager": "kubectl-edit", "operation": "Update", "fieldsV1": {"f:spec": {}}},
        {
            "manager": "turbo-operator",
            "operation": "Apply",
            "subresource": "status",
            "fieldsV1": {"f:status": {}},
        },
        {"manager": "turbo-operator", "operation": "Apply", "fieldsV1": OWNED},
    ]
    assert owned_fields(entries) == OWNED
    assert owned_fields(entries[:2]) == {}


def by(manager: str, spec: dict[str, Any], **more: str) -> dict[str, Any]:
    return {"manager": manager, "operation": "Update", "fieldsV1": {"f:spec": spec}, **more}


OURS = {"manager": "turbo-operator", "operation": "Apply", "fieldsV1": OWNED}


@pytest.mark.parametrize(
    ("entry", "paths"),
    [
        (by("kubectl-patch", {"f:paused": {}}), ("/f:paused",)),
        (
            by("kubectl-patch", {"f:template": {"f:spec": {"f:nodeSelector": {}}}}),
            ("/f:template/f:spec/f:nodeSelector",),
        ),
        (
            by(
                "kubectl-edit",
                {"f:template": {"f:spec": {"f:containers": {'k:{"name":"proxy"}': {".": {}}}}}},
            ),
            ('/f:template/f:spec/f:containers/k:{"name":"proxy"}',),
        ),
        (by("kubectl-edit", {"f:template": {"f:spec": {"f:tolerations": {}}}}), ()),  # ours too
        (by("kubectl-scale", {"f:replicas": {}}), ()),
        (by("keda", {"f:paused": {}}, subresource="scale"), ()),
        (by("turbo-operator", {"f:strategy": {}}), ()),  # a default that we put back
        (by("kubectl-rollout", {"f:template": {"f:metadata": {"f:annotations": {"f:restartedAt": {}}}}}), ()),
        ({"manager": "argocd", "fieldsV1": {"f:metadata": {"f:annotations": {"f:team": {}}}}}, ()),
    ],
)
def test_a_field_of_the_spec_that_is_somebody_elses_alone_was_added(
    entry: dict[str, Any], paths: tuple[str, ...]
) -> None:
    assert added_fields("Deployment", [OURS, entry]) == paths


def test_of_a_service_only_what_moves_traffic_counts() -> None:
    theirs = {"f:selector": {"f:theirs": {}}, "f:externalTrafficPolicy": {}, "f:publishNotReadyAddresses": {}}
    entry = by("cloud", theirs)
    found = added_fields("Service", [OURS, entry])
    assert found == ("/f:publishNotReadyAddresses", "/f:selector/f:theirs")
    assert added_fields("ConfigMap", [OURS, entry]) == ()


def test_what_is_written_in_whole_keeps_notes_of_others_and_nothing_else_of_theirs() -> None:
    notes = {"annotations": {"restartedAt": "now"}, "labels": {"theirs": "yes"}}
    live = {
        "metadata": {"annotations": {"team": "theirs"}},
        "spec": {"paused": True, "template": {"metadata": notes}},
    }
    wanted = {"kind": "Deployment", "spec": {"template": {"metadata": {"labels": {"ours": "yes"}}}}}
    assert build_replacement(live, wanted) == {
        "metadata": {"annotations": {"team": "theirs"}},
        "spec": {
            "template": {"metadata": {"labels": {"ours": "yes"}, "annotations": {"restartedAt": "now"}}}
        },
    }


def test_a_service_keeps_what_is_not_ours_when_it_is_written_in_whole() -> None:
    """Its type may be the user's, and its address is the API server's."""
    spec: dict[str, Any] = {"type": "LoadBalancer", "clusterIP": "10.0.0.1"}
    spec |= {"selector": {"a": "b", "theirs": "c"}, "publishNotReadyAddresses": True}
    live = {"kind": "Service", "metadata": {"uid": "u"}, "spec": spec}
    wanted = {"kind": "Service", "metadata": {}, "spec": {"selector": {"a": "b"}, "ports": []}}
    assert build_replacement(live, wanted)["spec"] == {
        "type": "LoadBalancer",
        "clusterIP": "10.0.0.1",
        "selector": {"a": "b"},
        "ports": [],
        "publishNotReadyAddresses": False,  # found on the real node: pods that load got requests
    }
