"""The embedded control plane is a real one: it stores, refuses, authorises and keeps an audit log."""

from __future__ import annotations

import pytest

from turbo_dev.access import Access
from turbo_dev.audit_reader import AuditReader
from turbo_dev.shell import CommandError

pytestmark = pytest.mark.cluster


def test_an_applied_object_is_there_and_its_write_is_in_the_audit_log(control_plane: Access) -> None:
    control_plane.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "audited", "namespace": "default"},
            "data": {"a": "b"},
        }
    )
    assert control_plane.get("configmap", "audited")["data"] == {"a": "b"}
    if control_plane.audit_log is not None:
        written = [
            (event["user"]["username"], event["verb"])
            for event in AuditReader(control_plane, '"audited"').read()
            if event["objectRef"].get("name") == "audited"
        ]
        assert written == [("turbo-admin", "patch")]
    control_plane.kubectl("delete", "configmap", "audited")


def test_an_unknown_field_is_refused(control_plane: Access) -> None:
    wrong = '{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "wrong"}, "dota": {}}'
    with pytest.raises(CommandError, match="unknown field"):
        control_plane.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", input=wrong)


def test_a_service_account_may_do_only_what_its_role_says(control_plane: Access) -> None:
    asked = ("auth", "can-i", "--as=system:serviceaccount:default:default", "delete", "nodes")
    with pytest.raises(CommandError, match="exit status 1"):
        control_plane.kubectl(*asked)
    assert control_plane.kubectl("auth", "can-i", "delete", "nodes").strip() == "yes"
