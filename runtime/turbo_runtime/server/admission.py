"""Admission: whose requests the server takes, how much it holds at once, whom it rejects when full, and when
they should retry.

Keys come from a file, one a line, as `name:key` or the key alone; no message or log line shows one.
The engine takes whatever is admitted here, so no admitted request is lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from turbo_runtime.files import file_stamp
from turbo_runtime.protocol.errors import ApiError, invalid

RELOAD_SECONDS = 1.0  # between two checks of the file of keys
MIN_KEY_LENGTH = 8
NUM_DEPARTURES = 64  # that the rate at which answers finish is measured over
MAX_RETRY_SECONDS = 60

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
        name, secret = line.split(":", 1) if ":" in line else ("", line)
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


@dataclass(slots=True)
class Amount:
    """Number of answers, and of tokens of their prompts."""

    answers: int = 0
    tokens: int = 0


@dataclass(slots=True)
class AdmissionSlot(Amount):
    """One request's share of the queue, until its client has all answers. `field` is what errors name."""

    tenant: str = ""
    field: str = ""


def estimate_seconds(departures: Sequence[float], num_answers: int, now: float) -> int:
    """Estimate the seconds until so many answers finish, which grow while none does."""
    if len(departures) < 2:
        return 1  # no rate is known yet
    seconds = num_answers * (now - departures[0]) / len(departures)
    return min(max(math.ceil(seconds), 1), MAX_RETRY_SECONDS)


def _is_beyond(limit: int, total: int, own: int, added: int, num_tenants: int) -> bool:
    """Whether `added` is too much for a tenant that has `own` of `total`."""
    if total + added <= limit:
        return False
    return total + added > 2 * limit or (own + added) * num_tenants > limit


class HeldBytes:
    """Bytes of the bodies that are no admitted tokens yet, shared among tenants as the queue's slots are."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0
        self._by_tenant: dict[str, int] = {}  # tenants that hold some

    @contextmanager
    def account(self, tenant: str) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes so many bytes more, until the end of the block. Where there is no room
        it gives all back, and raises ApiError (429).
        """
        held = 0

        def take(count: int) -> None:
            nonlocal held
            own, total = self._by_tenant.get(tenant, 0), self._total
            num_tenants = len(self._by_tenant) + (not own)
            is_beyond = count > 0 and _is_beyond(self._limit, total, own, count, num_tenants)
            change = -held if is_beyond else count
            held += change
            self._total += change
            self._by_tenant[tenant] = own + change
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]
            if is_beyond:
                message = f"The queue is full: it holds {total} bytes of bodies, of at most {self._limit}."
                raise ApiError(429, f"{message} Retry after 1 s.", headers={"Retry-After": "1"})

        try:
            yield take
        finally:
            take(-held)


class AdmissionSlots:
    """The queue's slots, counted per tenant; used on the event loop only.

    Below the limits, both at least 1, everybody is admitted. At the limits a tenant still gets its fair
    share, a limit divided by the tenants present: whoever fills the queue does not keep the others out. Twice
    the limits are never exceeded.
    """

    def __init__(self, limits: Amount) -> None:
        self._limits = limits
        self._total = Amount()
        self._by_tenant: dict[str, Amount] = {}  # tenants with at least one answer here
        self._departures = deque[float](maxlen=NUM_DEPARTURES)  # when the last answers finished
        self.empty = asyncio.Event()  # nobody waits for an answer
        self.empty.set()

    @property
    def answers(self) -> int:
        """Number of answers admitted and not finished."""
        return self._total.answers

    def find_rejection(self, tenant: str, answers: int, tokens: int) -> tuple[str, int] | None:
        """Return why so much more cannot come in now, and about how many answers must finish first."""
        own = self._by_tenant.get(tenant, Amount())
        num_tenants = len(self._by_tenant) + (tenant not in self._by_tenant)
        for limit, total, tenants_own, added, unit in (
            (self._limits.answers, self._total.answers, own.answers, answers, "answers"),
            (self._limits.tokens, self._total.tokens, own.tokens, tokens, "prompt tokens"),
        ):
            if added <= 0 or not _is_beyond(limit, total, tenants_own, added, num_tenants):
                continue
            leaving = (total + added - limit) * self._total.answers / max(total, 1)  # of the mean size
            message = f"The queue is full: {total} {unit} of at most {limit} are running or waiting."
            return message, max(math.ceil(leaving), 1)
        return None

    def add(self, tenant: str, answers: int, tokens: int) -> None:
        """Count answers that came in and the tokens of their prompts, or negative numbers that left."""
        own = self._by_tenant.setdefault(tenant, Amount())
        for count in (self._total, own):
            count.answers += answers
            count.tokens += tokens
        if not own.answers:
            del self._by_tenant[tenant]

    def acquire(self, tenant: str, answers: int, tokens: int, field: str) -> AdmissionSlot:
        """Admit so many answers; `tokens` is a lower bound of their prompts', counted for each answer.

        Raises ApiError: 429 while the queue is full, 400 about `field` when the request could never fit.
        """
        _check_size(answers, self._limits.answers, "answers", field)
        slot = AdmissionSlot(tenant=tenant, field=field)
        self._admit(slot, answers, tokens)
        self.empty.clear()
        return slot

    def resize(self, slot: AdmissionSlot, tokens: int) -> None:
        """Account for the prompts' actual number of tokens. Raises ApiError as `acquire`."""
        if tokens != slot.tokens:
            self._admit(slot, 0, tokens)

    def release(self, slot: AdmissionSlot, *, finished: bool) -> None:
        """Free a slot; `finished` says whether the engine had the answers."""
        self.add(slot.tenant, -slot.answers, -slot.tokens)
        if not self.answers:
            self.empty.set()
        if finished:
            self._departures.extend([time.monotonic()] * slot.answers)

    def _admit(self, slot: AdmissionSlot, added_answers: int, tokens: int) -> None:
        _check_size(tokens, self._limits.tokens, "prompt tokens, each answer's counted", slot.field)
        self.add(slot.tenant, 0, -slot.tokens)
        rejection = self.find_rejection(slot.tenant, added_answers, tokens)
        if rejection is None:
            slot.answers, slot.tokens = slot.answers + added_answers, tokens
        self.add(slot.tenant, 0 if rejection else added_answers, slot.tokens)
        if rejection is not None:
            message, num_answers = rejection
            seconds = estimate_seconds(self._departures, num_answers, time.monotonic())
            headers = {"Retry-After": str(seconds)}
            raise ApiError(429, f"{message} Retry after {seconds} s.", headers=headers)


def _check_size(size: int, limit: int, unit: str, field: str) -> None:
    if size > limit:
        raise invalid(
            field,
            f"The request asks for {size} {unit}, and this server takes in at most {limit} "
            "at once: send several requests.",
        )
