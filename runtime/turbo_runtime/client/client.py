"""A small client of the OpenAI API, on the standard library alone."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from turbo_runtime.client.address import KEY_VARIABLE, Address, ServerError, api_key
from turbo_runtime.client.connections import Lines
from turbo_runtime.client.terminal import printable
from turbo_runtime.contract.endpoints import VERSION_PATH

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 300.0  # between two pieces of an answer; a long prompt on a CPU takes a while

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Server:
    """A server to talk to. Raises ServerError from every method that asks it something."""

    address: Address
    key: str = field(default="", repr=False)  # of its API; empty: none

    @classmethod
    def at(cls, url: str) -> Server:
        """With the key that the environment holds. Raises ServerError."""
        return cls(Address.of(url), api_key())

    @property
    def url(self) -> str:
        """As it is told."""
        return str(self.address)

    def model(self) -> str:
        """The first model that the server lists."""
        status, text = self._ask("/v1/models")
        if status == 401:
            raise ServerError(
                f"{self.url} does not know the API key in {KEY_VARIABLE}."
                if self.key
                else f"{self.url} asks for an API key: put it into {KEY_VARIABLE}."
            )
        try:
            return str(json.loads(text)["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            pass
        if status != 404 and (message := _message(text)):
            raise ServerError(f"{self.url} answers {status}: {message}")
        raise ServerError(
            f"{self.url} answers {status}, and not as a server of the OpenAI API; is the address right?"
        )

    def turbo(self) -> Json | None:
        """What a Turbo server tells of itself; None for another server."""
        status, text = self._ask(VERSION_PATH)
        if status == 503 and (message := _message(text)):  # it loads its model
            raise ServerError(f"{self.url} answers {status}: {message}")
        try:
            document = json.loads(text)
        except ValueError:
            return None
        return document if status == 200 and isinstance(document, dict) and "guarantee" in document else None

    def stream(
        self, body: Mapping[str, Any], lines: Lines | None = None, path: str = "/v1/chat/completions"
    ) -> Generator[Json, None, None]:
        """The events of a streamed chat. Closing them closes the connection, which ends the answer; from
        another thread, `lines` does.
        """
        connection = self._connect()
        try:
            with (lines or Lines()).keep(connection.sock):
                answer = self._request(connection, "POST", path, {**body, "stream": True})
                if answer.status != 200:
                    text = answer.read().decode(errors="replace")
                    raise ServerError(self._refusal(answer.status, text), answer.status)
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
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise ServerError(f"{self.url} sent an event that is no JSON object.")
        if "error" in event:
            raise ServerError(self._refusal(200, data))
        return event

    def _ask(self, path: str) -> tuple[int, str]:
        connection = self._connect()
        try:
            answer = self._request(connection, "GET", path, None)
            return answer.status, answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self.url} does not answer: {_reason(error)}.") from error
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.address.secure else http.client.HTTPConnection
        connection = kind(self.address.host, self.address.port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
        except ssl.SSLError as error:
            raise ServerError(f"{self.url} cannot be talked to over TLS: {_reason(error)}.") from error
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
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        content = None if body is None else json.dumps(body).encode()
        connection.request(method, self.address.prefix + path, content, headers)
        return connection.getresponse()

    def _refusal(self, status: int, text: str) -> str:
        return _message(text) or printable(f"{self.url} answers {status}: {' '.join(text.split())[:200]}")


def _message(text: str) -> str:
    """The sentence of an error in OpenAI's shape; empty where there is none."""
    try:
        return printable(str(json.loads(text)["error"]["message"]))
    except (ValueError, LookupError, TypeError):
        return ""


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, socket.gaierror):
        return "there is no such host"
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.rstrip(".")
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "what answers is no TLS; try http://"
    reason = getattr(error, "strerror", None) or error or type(error).__name__
    return printable(str(reason)).rstrip(".")
