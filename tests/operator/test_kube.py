"""Errors of the API server, sorted by what helps; and what is written of the shipped accelerators."""

from __future__ import annotations

import json
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from kubernetes.aio.client import ApiClient, Configuration

from turbo_operator.api import ANNOTATION_APPLIED_HASH
from turbo_operator.controller.catalog_sync import needs_write
from turbo_operator.controller.kube import (
    ConflictError,
    GoneError,
    Kube,
    KubeError,
    NotLeadingError,
    NotOwnedError,
    RefusedError,
    error_of,
)
from turbo_operator.controller.kube.client import _why
from turbo_operator.resources import CHILDREN, TURBOACCELERATOR, TURBODEPLOYMENT


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RefusedError),
        (401, KubeError),
        (403, RefusedError),
        (404, GoneError),
        (409, ConflictError),
        (422, RefusedError),
        (429, KubeError),
        (500, KubeError),
        (504, KubeError),
    ],
)
def test_an_error_is_of_the_kind_that_says_what_helps(status: int, kind: type[KubeError]) -> None:
    body = {"kind": "Status", "message": "Deployment is invalid: spec.replicas", "reason": "Invalid"}
    error = error_of(status, json.dumps(body).encode())
    assert type(error) is kind
    assert (str(error), error.status, error.reason) == (body["message"], status, "Invalid")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RefusedError(422, "Invalid", "spec.replicas is 7"), "The API server refused: spec.replicas is 7"),
        (
            NotOwnedError("Service", "chat"),
            (
                "Service chat is there already and belongs to somebody else: delete it, or rename this "
                "TurboDeployment."
            ),
        ),
    ],
    ids=["refused", "somebody else"],
)
def test_only_what_the_api_server_refused_is_said_to_be_refused_by_it(
    error: RefusedError, sentence: str
) -> None:
    assert error.sentence == sentence


@pytest.mark.parametrize("text", [b"no JSON", b'"a string"', b"", b"\xff"])
def test_an_answer_that_is_no_status_still_has_a_message(text: bytes) -> None:
    assert error_of(502, text).message


def test_paths_of_the_api() -> None:
    assert CHILDREN["Service"].path("team", "chat") == "/api/v1/namespaces/team/services/chat"
    assert CHILDREN["Deployment"].path("team") == "/apis/apps/v1/namespaces/team/deployments"
    assert TURBODEPLOYMENT.path() == "/apis/serving.turbo.dev/v1alpha1/turbodeployments"
    status = TURBODEPLOYMENT.path("team", "chat", "status")
    assert status == "/apis/serving.turbo.dev/v1alpha1/namespaces/team/turbodeployments/chat/status"
    cluster_wide = "/apis/serving.turbo.dev/v1alpha1/turboaccelerators/cpu"
    assert TURBOACCELERATOR.path("ignored", "cpu") == cluster_wide


def accelerator(version: str | None, *managers: str) -> dict[str, Any]:
    entries = [{"manager": manager, "fieldsV1": {"f:spec": {"f:memory": {}}}} for manager in managers]
    annotations = {ANNOTATION_APPLIED_HASH: version} if version else {}
    return {"metadata": {"name": "cpu", "annotations": annotations, "managedFields": entries}}


def test_a_shipped_accelerator_is_written_when_missing_or_older_and_never_over_a_users_edit() -> None:
    assert needs_write("2", None)
    assert needs_write("2", accelerator("1", "turbo-operator"))
    assert not needs_write("2", accelerator("2", "turbo-operator"))
    assert not needs_write("2", accelerator("1", "turbo-operator", "kubectl-edit"))
    assert not needs_write("2", accelerator(None, "kubectl-client-side-apply"))


def test_a_certificate_that_does_not_hold_is_told_in_its_own_words() -> None:
    """The number of an error of TLS is none of the system's."""
    key = ConnectionKey("host", 6443, True, True, None, None, None)
    wrong = ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate")
    said = _why(aiohttp.ClientConnectorCertificateError(key, wrong))
    assert said == "no connection to host:6443 (certificate verify failed: self-signed certificate)"
    refused = aiohttp.ClientConnectorError(key, ConnectionRefusedError(111, "Connect call failed"))
    assert _why(refused) == "no connection to host:6443 (Connection refused)"


async def test_a_write_without_a_lease_is_not_sent_and_a_read_is() -> None:
    """Nothing answers at that port: what is sent fails in another way."""
    left = 0.0
    body = {"metadata": {"namespace": "team", "name": "chat", "resourceVersion": "1"}}
    async with ApiClient(Configuration(host="http://127.0.0.1:9")) as client:
        api = Kube(client).fenced(lambda: left)
        writes: list[Callable[[], Awaitable[Any]]] = [
            lambda: api.apply(TURBODEPLOYMENT, body),
            lambda: api.apply_status(TURBODEPLOYMENT, body),
            lambda: api.create(TURBODEPLOYMENT, body),
            lambda: api.replace(TURBODEPLOYMENT, body),
            lambda: api.merge(TURBODEPLOYMENT, "team", "chat", {}),
            lambda: api.delete(TURBODEPLOYMENT, "team", "chat", "uid"),
        ]
        for write in writes:
            with pytest.raises(NotLeadingError):
                await write()
        with pytest.raises(KubeError, match="did not answer"):
            await api.find(TURBODEPLOYMENT, "team", "chat")
        left = 5.0
        for write in writes:
            with pytest.raises(KubeError, match="did not answer"):
                await write()
