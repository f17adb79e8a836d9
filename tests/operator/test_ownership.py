"""Ownership read from managedFields: the forms are those that a real API server wrote for a Deployment."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from turbo_operator.ownership import owned_fields, owns

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
