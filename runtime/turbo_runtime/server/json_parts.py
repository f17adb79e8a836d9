"""JSON of large documents in small parts: between two of them other threads get their turn, which one call
of `json.dumps` would not give them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

MAX_ENTRIES = 64  # of a list in one part


def json_parts(value: Any, *, ascii_only: bool = False) -> Iterator[str]:
    """Yield the parts of a document. An iterator stands for a list whose entries are made in their turn."""
    if isinstance(value, dict):
        for index, (name, item) in enumerate(value.items()):
            yield ("," if index else "{") + json.dumps(name) + ":"
            yield from json_parts(item, ascii_only=ascii_only)
        yield "}" if value else "{}"
    elif isinstance(value, list) and len(value) > MAX_ENTRIES:
        entries, separator = iter(value), "["
        while batch := list(islice(entries, MAX_ENTRIES)):
            yield separator + _dump(batch, ascii_only)[1:-1]
            separator = ","
        yield "]"
    elif isinstance(value, Iterator):
        yield "["
        for index, item in enumerate(value):
            yield "," if index else ""
            yield from json_parts(item, ascii_only=ascii_only)
        yield "]"
    else:
        yield _dump(value, ascii_only)


def _dump(value: Any, ascii_only: bool) -> str:
    return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False, separators=(",", ":"))
