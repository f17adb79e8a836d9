"""API keys from a file: one a line, `name:key` or the key alone. No message or log line shows a key."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from pathlib import Path

from turbo_runtime.files import file_stamp

RELOAD_SECONDS = 1.0  # between two checks of the file
MIN_KEY_LENGTH = 8

log = logging.getLogger(__name__)


class ApiKeys:
    """Keys of a file, read again when it changes. Raises ValueError if it cannot be read at first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = file_stamp(path)
        self._tenants = read_keys(path)
        self._reload_time = time.monotonic() + RELOAD_SECONDS

    def find_tenant(self, authorization: str | None) -> str | None:
        """Return the name of the key in an `Authorization` header; None if it is unknown."""
        self._reload()
        scheme, _, key = (authorization or "").partition(" ")
        # all keys are compared in full, so that the time reveals nothing
        digest = _digest(key.strip() if scheme.lower() == "bearer" else "")
        matches = [tenant for known, tenant in self._tenants if hmac.compare_digest(known, digest)]
        return matches[0] if matches else None

    def _reload(self) -> None:
        if time.monotonic() < self._reload_time:
            return
        self._reload_time = time.monotonic() + RELOAD_SECONDS
        before, self._stamp = self._stamp, file_stamp(self._path)
        if self._stamp != before:
            try:
                self._tenants = read_keys(self._path)
            except ValueError as error:
                log.error("%s The keys read before stay in force.", error)


def read_keys(path: Path) -> list[tuple[bytes, str]]:
    """Return the digests of a file's keys and their tenants. Raises ValueError."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise ValueError(f"--api-key-file: {path} cannot be read: {reason}.") from error
    keys = []
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#"):
            continue
        name, colon, secret = line.partition(":")
        if not colon:
            name, secret = "", line
        if len(secret) < MIN_KEY_LENGTH or any(letter.isspace() for letter in secret):
            raise ValueError(
                f"--api-key-file: line {number} of {path} holds no key: "
                f"a key has at least {MIN_KEY_LENGTH} characters and no white space."
            )
        digest = _digest(secret)
        keys.append((digest, name or digest.hex()[:16]))  # a nameless key is a tenant of its own
    if not keys:
        raise ValueError(f"--api-key-file: {path} holds no key; write one a line, as name:key.")
    return keys


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).digest()
