"""Prompts are kept where that was asked for: sampled, redacted, by tenant, and never at a request's cost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from turbo_dev.server_process import PATIENCE
from turbo_runtime.capture.segment_store import delete_tenant, read, segments
from turbo_runtime.prompts import CAPTURED, read_prompts

KEYS = {"alice": "sk-alice-1", "bob": "sk-bob-0001"}


def asked(folder: Path) -> list[dict[str, Any]]:
    return [row for each in segments(folder) for row in read(each.path)]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def say(
    url: str, text: str, tenant: str = "alice", salt: str | None = None, model: str = "echo", **headers: str
) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 3}
    reply = httpx.post(
        f"{url}/v1/chat/completions",
        json={**body, "cache_salt": salt},
        headers={"Authorization": f"Bearer {KEYS[tenant]}", **headers},
        timeout=PATIENCE,
    )
    assert reply.status_code == 200, reply.text


def outcomes(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    counts = [line for line in lines if line.startswith("turbo:capture_prompts_total")]
    return {line.split('outcome="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in counts}


def gauge(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"turbo:{name}{{"))


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    (tmp_path / "keys").write_text("".join(f"{name}:{key}\n" for name, key in KEYS.items()))
    file = tmp_path / "capture.json"
    file.write_text(json.dumps({"folder": str(tmp_path / "kept"), "redact": [r"[\w.]+@[\w.]+"]}))
    return file


@pytest.fixture
def url(launch: Any, settings: Path) -> str:
    server = launch(f"--capture-config={settings}", f"--api-key-file={settings.with_name('keys')}")
    return str(server.url)


def test_what_was_asked_is_kept_as_the_model_read_it_redacted_and_by_tenant(url: str, tmp_path: Path) -> None:
    say(url, "hello ann@example.org \u2028 ünï", "alice")
    say(url, "hello bob", "bob", "a user of bob's")
    wait_for(lambda: len(asked(tmp_path / "kept")) == 2)
    rows = asked(tmp_path / "kept")
    assert [(row["tenant"], row["text"]) for row in rows] == [
        ("alice", "hello [redacted] \u2028 ünï"),
        ("bob", "hello bob"),
    ]
    assert time.time() - 60 < rows[0]["at"] <= time.time()
    wait_for(lambda: gauge(url, "capture_bytes") > 0)
    assert outcomes(url)["kept"] == 2
    assert gauge(url, "capture_error") == 0
    prompts = read_prompts([tmp_path / "kept"])
    assert [(prompt.written, prompt.domain) for prompt in prompts] == [
        (rows[0]["text"], CAPTURED),
        ("hello bob", CAPTURED),
    ]
    assert [prompt.tenant for prompt in prompts] == ["alice", None]  # whose answers a draft may bring to whom


def test_a_request_can_refuse(url: str, tmp_path: Path) -> None:
    for value in ("off", "no", "", "0"):
        say(url, "hello secret", **{"X-Turbo-Capture": value})
    say(url, "hello world", **{"X-Turbo-Capture": "on"})
    wait_for(lambda: outcomes(url)["kept"] == 1)
    assert outcomes(url)["refused"] == 4
    assert [row["text"] for row in asked(tmp_path / "kept")] == ["hello world"]


def test_prompts_for_an_adapter_are_not_kept(launch: Any, settings: Path, tmp_path: Path) -> None:
    """Drafts learn what the model itself answers to them."""
    keys = f"--api-key-file={settings.with_name('keys')}"
    url = launch(f"--capture-config={settings}", keys, "--lora-modules=sql=/tuned/sql").url
    say(url, "hello adapter", model="sql")
    say(url, "hello world")
    wait_for(lambda: asked(tmp_path / "kept"))
    assert [row["text"] for row in asked(tmp_path / "kept")] == ["hello world"]
    assert outcomes(url)["kept"] == 1


def test_a_tenants_prompts_are_deleted_while_the_server_writes(url: str, tmp_path: Path) -> None:
    say(url, "hello one", "alice")
    say(url, "hello two", "bob")
    wait_for(lambda: len(asked(tmp_path / "kept")) == 2)
    delete_tenant(tmp_path / "kept", "alice", time.time())
    wait_for(lambda: [row["tenant"] for row in asked(tmp_path / "kept")] == ["bob"])
    say(url, "hello three", "alice")  # asked after the deletion
    wait_for(lambda: [row["text"] for row in asked(tmp_path / "kept")] == ["hello two", "hello three"])


def test_settings_are_followed_and_broken_ones_change_nothing(
    url: str, settings: Path, tmp_path: Path
) -> None:
    settings.write_text('{"folder": ')
    wait_for(lambda: gauge(url, "capture_error") == 1)
    say(url, "hello once")
    wait_for(lambda: outcomes(url)["kept"] == 1)
    settings.write_text(json.dumps({"folder": str(tmp_path / "kept"), "sampleFraction": 0}))
    wait_for(lambda: gauge(url, "capture_error") == 0)
    say(url, "hello twice")
    wait_for(lambda: outcomes(url)["not_sampled"] == 1)
    assert [row["text"] for row in asked(tmp_path / "kept")] == ["hello once"]


def test_where_nothing_can_be_written_requests_are_answered_and_the_reason_is_told(
    launch: Any, settings: Path, tmp_path: Path
) -> None:
    (tmp_path / "kept").write_text("a file")
    server = launch(f"--capture-config={settings}", f"--api-key-file={settings.with_name('keys')}")
    say(server.url, "hello")
    wait_for(lambda: outcomes(server.url)["failed"] == 1)
    assert gauge(server.url, "capture_error") == 1
    server.wait_for("prompts are not captured: ")
    (tmp_path / "kept").unlink()
    say(server.url, "hello")
    wait_for(lambda: outcomes(server.url)["kept"] == 1)
    wait_for(lambda: gauge(server.url, "capture_error") == 0)


def test_settings_that_are_wrong_at_the_start_are_one_sentence(launch: Any, settings: Path) -> None:
    settings.write_text('{"folder": "x", "sample": 1}')
    server = launch(f"--capture-config={settings}", ready=False)
    assert server.exit_status() == 1
    assert server.said.count("\n") == 1
    assert "turbo serve: --capture-config: " in server.said
    assert "there is no 'sample'" in server.said


def test_without_capture_nothing_is_told_of_it(launch: Any) -> None:
    server = launch()
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    assert [line for line in lines if line.startswith("turbo:capture")] == []
