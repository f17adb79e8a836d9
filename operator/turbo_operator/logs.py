"""Logs on standard error, as JSON or as text, with the fields that a record was given."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

# What every LogRecord has; whatever else it carries came through `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time (RFC 3339, UTC), level, message, then its own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Format the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= _fields(record)
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """A record as text, for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Format the lines, the fields at the end of the first one."""
        first, _, rest = super().format(record).partition("\n")
        fields = " ".join(f"{name}={value}" for name, value in _fields(record).items())
        return "\n".join(part for part in (f"{first}  {fields}".rstrip(), rest) if part)


def configure(log_format: str, level: str) -> None:
    """Log all of `level` and above; of the framework only what went wrong: it reports each event it sees."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if level != "DEBUG":
        for name in ("kopf", "aiohttp", "asyncio"):
            logging.getLogger(name).setLevel(logging.WARNING)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    if not record.name.startswith(f"{__package__}."):  # the framework attaches whole objects to its records
        return {}
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}
