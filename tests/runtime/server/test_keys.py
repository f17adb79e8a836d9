"""API keys: who may ask, whose cache it is, and that nobody learns a key."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from turbo_runtime.server import admission
from turbo_runtime.server.admission import ApiKeys, read_keys

KEYS = "# ours\n\nalice:sk-alice-1\nsk-nameless-1\n"


def test_a_key_tells_its_tenant_and_nothing_else_does(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(KEYS)
    known = ApiKeys(path)
    assert known.find_tenant("Bearer sk-alice-1") == "alice"
    assert known.find_tenant("bearer  sk-alice-1 ") == "alice"
    nameless = known.find_tenant("Bearer sk-nameless-1")
    assert nameless
    assert "nameless" not in nameless
    for other in (None, "", "sk-alice-1", "Basic sk-alice-1", "Bearer", "Bearer alice", "Bearer sk-alice-10"):
        assert known.find_tenant(other) is None


def test_a_file_that_changes_is_read_again_and_a_broken_one_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admission, "RELOAD_SECONDS", 0.0)
    path = tmp_path / "keys"
    path.write_text(KEYS)
    known = ApiKeys(path)
    replacement = tmp_path / "new"
    replacement.write_text("bob:sk-bob-0001\n")
    replacement.rename(path)  # as Kubernetes swaps a mounted Secret
    assert known.find_tenant("Bearer sk-alice-1") is None
    assert known.find_tenant("Bearer sk-bob-0001") == "bob"
    with caplog.at_level(logging.ERROR):
        path.write_text("carol:short\n")
        assert known.find_tenant("Bearer sk-bob-0001") == "bob"
        path.unlink()
        assert known.find_tenant("Bearer sk-bob-0001") == "bob"
    assert "line 1" in caplog.text
    assert "short" not in caplog.text.replace("shorter", "")


def test_a_secret_that_the_kubelet_renews_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key of the volume is a link through `..data`, and that is what is swapped."""
    monkeypatch.setattr(admission, "RELOAD_SECONDS", 0.0)
    for name, content in (("..old", KEYS), ("..new", "bob:sk-bob-0001\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "api-keys").write_text(content)
    (tmp_path / "..data").symlink_to("..old")
    (tmp_path / "api-keys").symlink_to("..data/api-keys")
    known = ApiKeys(tmp_path / "api-keys")
    assert known.find_tenant("Bearer sk-alice-1") == "alice"
    (tmp_path / "..tmp").symlink_to("..new")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    assert known.find_tenant("Bearer sk-alice-1") is None
    assert known.find_tenant("Bearer sk-bob-0001") == "bob"


@pytest.mark.parametrize("content", ["", "# none\n", "name:\n", "name:has space\n", "tooshrt\n"])
def test_a_file_without_a_usable_key_is_one_sentence_that_tells_no_key(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(ValueError, match="--api-key-file") as caught:
        read_keys(path)
    assert "has space" not in str(caught.value)
    assert "tooshrt" not in str(caught.value)


def test_a_server_with_keys_asks_for_one_on_v1_and_nowhere_else(launch: Any, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(KEYS)
    server = launch(f"--api-key-file={path}")
    for url in ("/v1/models", "/v1/models/echo"):
        assert httpx.get(server.url + url).status_code == 401
    reply = httpx.post(f"{server.url}/v1/completions", content=b"no JSON at all")
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "invalid_api_key"
    assert reply.headers["www-authenticate"] == "Bearer"
    for url in ("/health", "/ready", "/load", "/metrics", "/version", "/openapi.json"):
        assert httpx.get(server.url + url).status_code == 200
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-wrong-key", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        alice = client.with_options(api_key="sk-alice-1")
        assert alice.completions.create(model="echo", prompt="abc", temperature=0).choices[0].text == "abc"
    told = server.engine_log.read_text()
    assert "tenant='alice'" in told
    assert "sk-" not in told + server.said
    assert "one tenant" not in server.said


def test_a_server_without_keys_says_what_its_clients_share(server: Any) -> None:
    assert "all clients are one tenant, and share cached prompts and remembered outputs" in server.said


def test_a_key_file_that_is_not_there_is_one_sentence_and_status_1(launch: Any, tmp_path: Path) -> None:
    server = launch(f"--api-key-file={tmp_path / 'gone'}", ready=False)
    assert server.exit_status() == 1
    assert server.said == (
        f"turbo serve: --api-key-file: {tmp_path / 'gone'} cannot be read: No such file or directory.\n"
    )
