"""Small client of the OpenAI API, on the standard library alone."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import time
from _thread import start_new_thread
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar
from urllib.parse import urlsplit

from turbo_runtime.contract.endpoints import VERSION_PATH

KEY_VARIABLE = "OPENAI_API_KEY"
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 300.0  # between two reads of an answer; a long prompt on a CPU takes a while

# Control characters but line feed and tab could move the cursor, set the title or fill the clipboard; halves
# of a pair of UTF-16 cannot be printed at all.
_UNPRINTABLE: dict[int, str | None] = {
    **{code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}"),
}

Json = dict[str, Any]
Item = TypeVar("Item")


class ServerError(Exception):
    """Problem of the server or the way to it, in one sentence; `status` if the server sent one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Server:
    """A server of the OpenAI API. Every method that sends a request raises ServerError."""

    url: str  # with the port, and without /v1
    key: str = field(default="", repr=False)  # of its API; empty: none

    @classmethod
    def at(cls, url: str) -> Server:
        """Parse a URL as people write it, and read the key from the environment. Raises ServerError."""
        error = ServerError(f"{url!r} is no address of a server; write one such as http://127.0.0.1:8000.")
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname or "", parts.port
            host.encode("idna")  # rejects an empty label and one that is too long
        except ValueError:
            raise error from None
        is_plain = parts.path.isascii() and (host + parts.path).isprintable() and " " not in host + parts.path
        if parts.scheme not in ("http", "https") or not host or not is_plain:
            raise error
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (key.isascii() and key.isprintable()) or " " in key:  # no header can carry it
            raise ServerError(
                f"The API key in {KEY_VARIABLE} has white space or letters in it that no key has: copy it "
                "again."
            )
        host, port = f"[{host}]" if ":" in host else host, port or (443 if parts.scheme == "https" else 80)
        return cls(f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/').removesuffix('/v1')}", key)

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

    def stream(self, body: Json, path: str = "/v1/chat/completions") -> Generator[Json, None, None]:
        """Yield the events of a streamed answer; closing the generator ends the answer."""
        failure = f"The answer of {self.url} broke off"
        with self._open("POST", path, failure, {**body, "stream": True}) as response:
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

    def stream_chat(self, body: Json, progress: Progress) -> Generator[tuple[str, str], None, None]:
        """Yield parts of (reasoning, text), and update `progress`; closing the generator ends the answer."""
        start_time = time.monotonic()
        with closing(self.stream(body)) as events:
            for event in events:
                deltas = [choice.get("delta") or {} for choice in event.get("choices") or ()]
                parts = [(each.get("reasoning_content") or "", each.get("content") or "") for each in deltas]
                parts = [part for part in parts if any(part)]
                progress.update(event, time.monotonic() - start_time, bool(parts))
                yield from parts

    def _get(self, path: str) -> tuple[int, str]:
        with self._open("GET", path, f"{self.url} does not answer") as response:
            return response.status, response.read().decode(errors="replace")

    @contextmanager
    def _open(
        self, method: str, path: str, failure: str, body: Json | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        url = urlsplit(self.url)
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = kind(url.hostname or "", url.port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
        except ssl.SSLError as error:
            raise ServerError(f"{self.url} cannot be talked to over TLS: {_reason(error)}.") from error
        except OSError as error:
            raise ServerError(
                f"There is no server at {self.url}: {_reason(error)}; `turbo serve MODEL` starts one."
            ) from error
        connection.sock.settimeout(SILENCE_SECONDS)
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, url.path + path, content, headers)
            yield connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{failure}: {_reason(error)}.") from error
        finally:
            connection.close()

    def _describe_error(self, status: int, text: str) -> str:
        return _error_message(text) or printable(
            f"{self.url} answers {status}: {' '.join(text.split())[:200]}"
        )


@dataclass(slots=True)
class Progress:
    """Figures of an answer so far; `tokens` is the server's count if it sends one, else the events'."""

    tokens: int = 0
    events: int = 0
    first_tokens: int = 0  # that the first event brought: speculation may bring several
    first_token_seconds: float | None = None
    seconds: float = 0.0
    acceptance_length: float | None = None
    speedup: float | None = None  # of the answer, over speculation off

    @property
    def tokens_per_second(self) -> float | None:
        """Rate of the tokens after the first ones; None before there are more."""
        if self.first_token_seconds is None or self.tokens <= self.first_tokens:
            return None
        seconds = self.seconds - self.first_token_seconds
        return (self.tokens - self.first_tokens) / seconds if seconds > 0 else None

    def update(self, event: Mapping[str, Any], seconds: float, has_text: bool) -> None:
        """Update the figures with an event that came after `seconds`."""
        self.seconds = seconds
        self.events += has_text
        usage, turbo = event.get("usage"), event.get("turbo")
        self.tokens = usage["completion_tokens"] if usage else max(self.tokens, self.events)
        if turbo:
            self.acceptance_length = turbo.get("acceptance_length")
            self.speedup = turbo.get("speedup")
        if has_text and self.first_token_seconds is None:
            self.first_token_seconds, self.first_tokens = seconds, self.tokens


def work_off(items: Iterable[Item], work: Callable[[Item], None], num_threads: int) -> None:
    """Do the work on each item, so many at a time. Raises its first error. After an interrupt nothing more
    begins, and what runs is not waited for: a thread of an executor would keep the program from ending.
    """
    # All in C: Ctrl-C within a lock that is written in Python, as pools and threads have, leaves it taken.
    waiting, results = list(items), SimpleQueue[BaseException | None]()
    total, remaining = len(waiting), iter(waiting)

    def run() -> None:
        for item in remaining:
            try:
                work(item)
                results.put(None)
            except BaseException as error:
                waiting.clear()
                results.put(error)

    try:
        for _ in range(min(max(num_threads, 1), total)):
            start_new_thread(run, ())
        for _ in range(total):
            if error := results.get():
                raise error
    finally:
        waiting.clear()


def printable(text: str) -> str:
    """Return the text without what a terminal would obey."""
    return text.translate(_UNPRINTABLE)


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
