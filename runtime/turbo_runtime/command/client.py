"""A small client of the OpenAI API, on the standard library alone."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from turbo_runtime.contract import VERSION_PATH

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 300.0  # between two pieces of an answer; a long prompt on a CPU takes a while
KEY_VARIABLE = "OPENAI_API_KEY"

Json = dict[str, Any]


class ServerError(Exception):
    """What went wrong with the server, in one sentence."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is. Raises ServerError from every method that asks it something."""

    host: str
    port: int
    secure: bool
    prefix: str  # of the paths, without /v1

    @classmethod
    def at(cls, url: str) -> Server:
        """From what a person types: with or without a scheme, a port, `/v1` or a slash at the end."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if parts.scheme not in ("http", "https") or not host:
            raise ServerError(f"{url!r} is no address of a server; write one such as http://127.0.0.1:8000.")
        secure = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(host, port or (443 if secure else 80), secure, prefix)

    @property
    def url(self) -> str:
        """As it is told."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' * self.secure}://{host}:{self.port}{self.prefix}"

    def model(self) -> str:
        """The first model that the server lists."""
        status, text = self._ask("GET", "/v1/models", None)
        if status == 401:
            raise ServerError(f"{self.url} asks for an API key: put it into {KEY_VARIABLE}.")
        try:
            return str(json.loads(text)["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise ServerError(
                f"{self.url} answers {status}, and not as a server of the OpenAI API; is the address right?"
            ) from None

    def turbo(self) -> Json | None:
        """What a Turbo server tells of itself; None for another server."""
        status, text = self._ask("GET", VERSION_PATH, None)
        try:
            document = json.loads(text)
        except ValueError:
            return None
        return document if status == 200 and isinstance(document, dict) and "guarantee" in document else None

    def stream(self, body: Mapping[str, Any]) -> Generator[Json, None, None]:
        """The events of a streamed chat. Closing them closes the connection, which ends the answer."""
        connection = self._connect()
        try:
            answer = self._request(connection, "POST", "/v1/chat/completions", {**body, "stream": True})
            if answer.status != 200:
                raise ServerError(self._refusal(answer.status, answer.read().decode(errors="replace")))
            for line in answer:
                data = line.decode(errors="replace").strip().removeprefix("data:").strip()
                if not data or data.startswith(":"):
                    continue
                if data == "[DONE]":
                    return
                yield self._event(data)
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"The answer of {self.url} broke off: {_reason(error)}.") from error
        finally:
            connection.close()

    def _event(self, data: str) -> Json:
        try:
            event: Json = json.loads(data)
        except ValueError:
            raise ServerError(f"{self.url} sent an event that is no JSON.") from None
        if "error" in event:
            raise ServerError(self._refusal(200, data))
        return event

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, str]:
        connection = self._connect()
        try:
            answer = self._request(connection, method, path, body)
            return answer.status, answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self.url} does not answer: {_reason(error)}.") from error
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
        except OSError as error:
            raise ServerError(
                f"There is no server at {self.url}: {_reason(error)}; `turbo serve MODEL` starts one."
            ) from error
        connection.sock.settimeout(SILENCE_SECONDS)
        return connection

    def _request(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Mapping[str, Any] | None
    ) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        content = None if body is None else json.dumps(body).encode()
        connection.request(method, self.prefix + path, content, headers)
        return connection.getresponse()

    def _refusal(self, status: int, text: str) -> str:
        try:
            return str(json.loads(text)["error"]["message"])
        except (ValueError, LookupError, TypeError):
            return f"{self.url} answers {status}: {' '.join(text.split())[:200]}"


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, socket.gaierror):
        return "there is no such host"
    return str(getattr(error, "strerror", None) or error or type(error).__name__).rstrip(".")
