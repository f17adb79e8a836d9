"""Address of a server, and the key for it, as a person gives them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

KEY_VARIABLE = "OPENAI_API_KEY"


class ServerError(Exception):
    """Problem of the server or the way to it, in one sentence; `status` if the server sent one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Address:
    """Address of a server of the OpenAI API."""

    host: str
    port: int
    secure: bool
    prefix: str  # of the paths, without /v1

    @classmethod
    def parse(cls, url: str) -> Address:
        """Parse a URL with or without a scheme, a port, `/v1` or a slash at the end. Raises ServerError."""
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
        secure = parts.scheme == "https"
        return cls(host, port or (443 if secure else 80), secure, parts.path.rstrip("/").removesuffix("/v1"))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' * self.secure}://{host}:{self.port}{self.prefix}"


def read_api_key() -> str:
    """Read the key from the environment; empty for none.

    Raises ServerError, which does not show the key, for one that no header can carry.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ServerError(
            f"The API key in {KEY_VARIABLE} has white space or letters in it that no key has: copy it again."
        )
    return key
