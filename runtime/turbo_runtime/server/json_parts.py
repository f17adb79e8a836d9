"""JSON of large documents in small parts: between two of them other threads have their turn, which one call
of `json.dumps` would not give them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

AT_ONCE = 64  # entries of a list


def json_parts(value: Any, *, ascii_only: bool = False) -> Iterator[str]:
    """The parts of one document. An iterator stands for a list whose entries are large, and are made when
    their turn comes.
    """
    if isinstance(value, dict):
        for place, (name, one) in enumerate(value.items()):
            yield ("," if place else "{") + json.dumps(name) + ":"
            yield from json_parts(one, ascii_only=ascii_only)
        yield "}" if value else "{}"
    elif isinstance(value, list) and len(value) > AT_ONCE:
        entries, comma = iter(value), "["
        while some := list(islice(entries, AT_ONCE)):
            yield comma + _dumps(some, ascii_only)[1:-1]
            comma = ","
        yield "]"
    elif isinstance(value, Iterator):
        yield "["
        for place, one in enumerate(value):
            yield "," if place else ""
            yield from json_parts(one, ascii_only=ascii_only)
        yield "]"
    else:
        yield _dumps(value, ascii_only)


def _dumps(value: Any, ascii_only: bool) -> str:
    return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False, separators=(",", ":"))
