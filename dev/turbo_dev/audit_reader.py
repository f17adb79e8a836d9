"""A growing audit log, each line read once."""

from __future__ import annotations

import json
from typing import Any

from turbo_dev.access import Access
from turbo_dev.status_coherence import check_writes


class AuditReader:
    """Reads the completed writes whose line holds `text`; `access` is the way into a cluster of ours."""

    def __init__(self, access: Access, text: str = "") -> None:
        assert access.audit_log is not None
        self._path = access.audit_log
        self._text = text.encode()
        self._read_bytes = 0

    def read(self) -> list[dict[str, Any]]:
        """The events since this was last asked, oldest first."""
        with self._path.open("rb") as log:
            log.seek(self._read_bytes)
            lines = [line for line in log if line.endswith(b"\n")]  # the last one may still be on its way
        self._read_bytes += sum(map(len, lines))
        return [json.loads(line) for line in lines if self._text in line]


class StatusReader:
    """Reads what `user` has written to statuses of TurboDeployments."""

    def __init__(self, access: Access, user: str) -> None:
        self._reader = AuditReader(access, '"turbodeployments"')
        self._user = user

    def contradictions(self) -> list[str]:
        """What contradicts itself in the writes since this was last asked."""
        return check_writes(
            [event for event in self._reader.read() if event["user"]["username"] == self._user]
        )
