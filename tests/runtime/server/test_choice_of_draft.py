"""A request chooses its trained draft by a header: a name that is there, or a 400 that lists them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from turbo_dev.server_process import PATIENCE
from turbo_runtime.contract import endpoints

BODIES: dict[str, dict[str, Any]] = {
    "chat/completions": {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
    "completions": {"model": "echo", "prompt": "hi", "max_tokens": 4},
}


@pytest.fixture(scope="module")
def chosen(launch: Callable[..., Any]) -> Any:
    """A server whose engine has told of its drafts, `default` and `latex`."""
    server = launch()
    assert say(server, "completions").status_code == 200
    assert httpx.get(server.url + endpoints.VERSION_PATH).json()["drafts"] == {
        "default": "heads-3",
        "latex": "latex-1",
    }
    return server


def say(server: Any, path: str, *said: str, **fields: object) -> httpx.Response:
    headers = [("X-Turbo-Draft", each) for each in said]
    url = f"{server.url}/v1/{path}"
    return httpx.post(url, json=BODIES[path] | fields, headers=headers, timeout=PATIENCE)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("said", "chosen_name"), [((), "default"), (("default",), "default")])
def test_without_a_header_a_request_has_the_deployments_own(
    chosen: Any, path: str, said: tuple[str, ...], chosen_name: str
) -> None:
    assert say(chosen, path, *said).status_code == 200
    assert f"draft='{chosen_name}'" in requests(chosen)[-1]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_name_that_is_there_reaches_the_engine_with_every_answer(
    chosen: Any, path: str, stream: bool
) -> None:
    before = len(requests(chosen))
    assert say(chosen, path, "latex", n=2, temperature=1.0, stream=stream).status_code == 200
    told = requests(chosen)[before:]
    assert len(told) == 2
    assert all("draft='latex'" in each for each in told)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("said", [("json",), ("Latex",), ("",), ("latex", "default"), ("x" * 5000,)])
def test_another_name_is_refused_and_those_there_are_listed(
    chosen: Any, path: str, said: tuple[str, ...]
) -> None:
    before = len(requests(chosen))
    reply = say(chosen, path, *said, stream=True)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["param"], error["code"]) == ("X-Turbo-Draft", "invalid_value")
    assert error["message"].endswith(
        "send the header X-Turbo-Draft with one of 'default', 'latex', or leave it out."
    )
    assert len(error["message"]) < 300
    assert len(requests(chosen)) == before


def test_a_server_without_named_drafts_has_the_default_alone(launch: Callable[..., Any]) -> None:
    server = launch()
    assert httpx.get(server.url + endpoints.VERSION_PATH).json()["drafts"] == {"default": None}
    reply = say(server, "completions", "latex")
    assert reply.status_code == 400
    assert "with one of 'default', or" in reply.json()["error"]["message"]


def requests(server: Any) -> list[str]:
    """What the engine was asked for."""
    lines: list[str] = server.engine_log.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("GenerationRequest(")]
