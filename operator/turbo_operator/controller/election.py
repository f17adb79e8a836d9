"""Which of several operators may write: a Lease, by client-go's rules. Pure.

A contender takes the Lease if nobody holds it, or if it has not changed for as long as it lasts, by the
contender's own clock: no two clocks are compared. Its holder writes only as long as nobody else can have
taken it. (client-go, `tools/leaderelection`.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

LEASE_SECONDS = 15  # without a renewal, after which another may take it
RENEW_SECONDS = 10.0  # without a renewal, after which its holder gives up
RETRY_SECONDS = 1.0  # between two looks

Lease = Mapping[str, Any]


@dataclass
class Election:
    """What one contender knows of a Lease. Times are of its own monotonic clock, in seconds."""

    identity: str
    _seen: tuple[str, str] | None = field(default=None, init=False)  # holder and version, as last read
    _seen_at: float = field(default=-math.inf, init=False)  # when they were others
    _renewed_at: float = field(default=-math.inf, init=False)  # before our last write was sent

    def wanted(self, lease: Lease | None, now: float, date: datetime) -> dict[str, Any] | None:
        """Return the spec to write over `lease` (None: there is none), or None while it is another's."""
        spec = (lease or {}).get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        seen = holder, lease["metadata"]["resourceVersion"] if lease else ""
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        lasts = spec.get("leaseDurationSeconds") or LEASE_SECONDS
        if holder not in ("", self.identity) and now < self._seen_at + lasts:
            return None
        time = _micro_time(date)
        is_new = holder != self.identity
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": LEASE_SECONDS,
            "acquireTime": time if is_new else spec.get("acquireTime") or time,
            "renewTime": time,
            "leaseTransitions": (spec.get("leaseTransitions") or 0) + (is_new and lease is not None),
        }

    def taken(self, lease: Lease | None) -> bool:
        """Whether the Lease was ours and is not any more: another has it, or had it since."""
        return self.held and ((lease or {}).get("spec") or {}).get("holderIdentity") != self.identity

    def written(self, sent_at: float) -> None:
        """The API server has taken what was sent then."""
        self._renewed_at = sent_at

    def lost(self) -> None:
        """Another holds it, or we have given it up."""
        self._renewed_at = -math.inf

    @property
    def held(self) -> bool:
        """Whether we had it last, be it too long ago."""
        return self._renewed_at > -math.inf

    def seconds_left(self, now: float) -> float:
        """Return for how long a request that begins now may be under way; not above 0: none may begin."""
        since = now - self._renewed_at
        return LEASE_SECONDS - since if since < RENEW_SECONDS else 0.0


def released(lease: Lease, date: datetime) -> dict[str, Any]:
    """Return the spec of our `lease` once it is given up, so that a standby need not wait."""
    kept = {"leaseTransitions": lease["spec"].get("leaseTransitions", 0)}
    return {**kept, "leaseDurationSeconds": 1, "renewTime": _micro_time(date)}


def _micro_time(date: datetime) -> str:
    return date.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
