"""Small client of the OpenAI API, on the standard library alone."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from turbo_runtime.client.address import KEY_VARIABLE, Address, ServerError, read_api_key
from turbo_runtime.client.terminal import printable
from turbo_runtime.contract.endpoints import VERSION_PATH

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 300.0  # between two reads of an answer; a long prompt on a CPU takes a while

Json = dict[str, Any]


class ConnectionGroup:
    """Connections that another thread can close: a thread in a read notices only a shut socket."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self.is_closed = False

    @contextmanager
    def track(self, connection: socket.socket) -> Iterator[None]:
        """Track a connection while it is used; a closed group closes it at once."""
        with self._lock:
            self._sockets.add(connection)
            if self.is_closed:
                _shut_down(connection)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(connection)

    def close(self) -> None:
        """End all reads and writes of these connections, now and from now on."""
        with self._lock:
            self.is_closed = True
            for connection in self._sockets:
                _shut_down(connection)


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):  # the other end was faster
        # Not the method of a TLS socket, which would also forget the state that its reader is about to use.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class Server:
    """A server of the OpenAI API. Every method that sends a request raises ServerError."""

    address: Address
    key: str = field(default="", repr=False)  # of its API; empty: none

    @classmethod
    def at(cls, url: str) -> Server:
        """Return the server, with the key from the environment. Raises ServerError."""
        return cls(Address.parse(url), read_api_key())

    @property
    def url(self) -> str:
        """Address for messages."""
        return str(self.address)

    def model(self) -> str:
        """Return the first model that the server lists."""
        status, text = self._get("/v1/models")
        if status == 401:
            raise ServerError(
                f"{self.url} does not know the API key in {KEY_VARIABLE}."
                if self.key
                else f"{self.url} asks for an API key: put it into {KEY_VARIABLE}."
            )
        with suppress(ValueError, LookupError, TypeError):
            return str(json.loads(text)["data"][0]["id"])
        if status != 404 and (message := _error_message(text)):
            raise ServerError(f"{self.url} answers {status}: {message}")
        raise ServerError(
            f"{self.url} answers {status}, and not as a server of the OpenAI API; is the address right?"
        )

    def turbo_version(self) -> Json | None:
        """Return a Turbo server's `/version`; None for another server."""
        status, text = self._get(VERSION_PATH)
        if status == 503 and (message := _error_message(text)):  # it loads its model
            raise ServerError(f"{self.url} answers {status}: {message}")
        document = _parse_json(text)
        return document if status == 200 and isinstance(document, dict) and "guarantee" in document else None

    def stream(
        self,
        body: Mapping[str, Any],
        connections: ConnectionGroup | None = None,
        path: str = "/v1/chat/completions",
    ) -> Generator[Json, None, None]:
        """Yield the events of a streamed answer; closing the generator or the connections ends the answer."""
        connection = self._connect()
        try:
            with (connections or ConnectionGroup()).track(connection.sock):
                response = self._request(connection, "POST", path, {**body, "stream": True})
                if response.status != 200:
                    text = response.read().decode(errors="replace")
                    raise ServerError(self._describe_error(response.status, text), response.status)
                for line in response:
                    data = line.decode(errors="replace").strip().removeprefix("data:").strip()
                    if not data or data.startswith(":"):
                        continue
                    if data == "[DONE]":
                        return
                    event = _parse_json(data)
                    if not isinstance(event, dict):
                        raise ServerError(f"{self.url} sent an event that is no JSON object.")
                    if "error" in event:
                        raise ServerError(self._describe_error(200, data))
                    yield event
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"The answer of {self.url} broke off: {_reason(error)}.") from error
        finally:
            connection.close()

    def _get(self, path: str) -> tuple[int, str]:
        connection = self._connect()
        try:
            response = self._request(connection, "GET", path)
            return response.status, response.read().decode(errors="replace")
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
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
    ) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        content = None if body is None else json.dumps(body).encode()
        connection.request(method, self.address.prefix + path, content, headers)
        return connection.getresponse()

    def _describe_error(self, status: int, text: str) -> str:
        return _error_message(text) or printable(
            f"{self.url} answers {status}: {' '.join(text.split())[:200]}"
        )


def _parse_json(text: str) -> Any:
    with suppress(ValueError):
        return json.loads(text)
    return None


def _error_message(text: str) -> str:
    """The sentence of an error in OpenAI's shape; empty where there is none."""
    with suppress(ValueError, LookupError, TypeError):
        return printable(str(json.loads(text)["error"]["message"]))
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
