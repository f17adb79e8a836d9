"""API keys from a file: one a line, `name:key` or the key alone. Keys are never told or logged."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from turbo_runtime.file_stamp import file_stamp

LOOK_SECONDS = 1.0  # how often the file is looked at
LEAST_KEY_LENGTH = 8

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Key:
    tenant: str
    digest: bytes


class ApiKeys:
    """The keys of a file, read again when it changes; a mounted Secret changes as a whole.

    Raises ValueError with a sentence, as `read_keys` does, where the file cannot be read at first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = file_stamp(path)
        self._keys = read_keys(path)
        self._look_at = time.monotonic() + LOOK_SECONDS

    def tenant(self, authorization: str | None) -> str | None:
        """The name of the key in an `Authorization` header, `Bearer KEY`; None where there is none of ours.

        All keys are compared, in full, however early one differs: the time tells nothing.
        """
        self._look()
        scheme, _, sent = (authorization or "").partition(" ")
        digest = _digest(sent.strip() if scheme.lower() == "bearer" else "")
        found = [key.tenant for key in self._keys if hmac.compare_digest(key.digest, digest)]
        return found[0] if found else None

    def _look(self) -> None:
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_SECONDS
        stamp = file_stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path)
        except ValueError as error:
            log.error("%s The keys read before stay in force.", error)


def read_keys(path: Path) -> tuple[_Key, ...]:
    """The keys of a file; empty lines and those that start with `#` are none. Raises ValueError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise ValueError(f"--api-keys: {path} cannot be read: {reason}.") from error
    keys = [_key(path, number, line.strip()) for number, line in enumerate(lines, start=1) if _meant(line)]
    if not keys:
        raise ValueError(f"--api-keys: {path} holds no key; write one a line, as name:key.")
    return tuple(keys)


def _meant(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _key(path: Path, number: int, line: str) -> _Key:
    name, colon, secret = line.partition(":")
    if not colon:
        name, secret = "", line
    if len(secret) < LEAST_KEY_LENGTH or any(letter.isspace() for letter in secret):
        raise ValueError(
            f"--api-keys: line {number} of {path} holds no key: "
            f"a key has at least {LEAST_KEY_LENGTH} characters and no white space."
        )
    digest = _digest(secret)
    return _Key(name or digest.hex()[:16], digest)  # a nameless key is a tenant of its own


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).digest()
