"""Where a server is, and the key for it, as a person gives them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

KEY_VARIABLE = "OPENAI_API_KEY"


class ServerError(Exception):
    """What is wrong with the server or the way to it, in one sentence; `status` if it answered with one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Address:
    """Of a server of the OpenAI API."""

    host: str
    port: int
    secure: bool
    prefix: str  # of the paths, without /v1

    @classmethod
    def of(cls, url: str) -> Address:
        """From what a person types: with or without a scheme, a port, `/v1` or a slash at the end.

        Raises ServerError.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname or "", parts.port
            host.encode("idna")  # refuses an empty label and one that is too long
        except ValueError:
            raise _no_address(url) from None
        plain = parts.path.isascii() and (host + parts.path).isprintable() and " " not in host + parts.path
        if parts.scheme not in ("http", "https") or not host or not plain:
            raise _no_address(url)
        secure = parts.scheme == "https"
        return cls(host, port or (443 if secure else 80), secure, parts.path.rstrip("/").removesuffix("/v1"))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' * self.secure}://{host}:{self.port}{self.prefix}"


def _no_address(url: str) -> ServerError:
    return ServerError(f"{url!r} is no address of a server; write one such as http://127.0.0.1:8000.")


def api_key() -> str:
    """From the environment, without the white space around it that files and copying leave; empty: none.

    Raises ServerError, which does not tell the key, for one that no header can carry.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ServerError(
            f"The API key in {KEY_VARIABLE} has white space or letters in it that no key has: copy it again."
        )
    return key
