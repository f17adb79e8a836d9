"""Records as JSON documents, checked when read: another version or another program may have written one."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

_hints = functools.cache(get_type_hints)  # most of what reading a document would take
# A count that no counter of 64 bits holds is nonsense, and a float of it an error.
LARGEST = (1 << 63) - 1
_MOST_ITEMS = 16  # of a list in a document


@dataclass(frozen=True, slots=True)
class JsonDocument:
    """A record that a process reports as JSON, to readers of other versions."""

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read it: unknown keys are ignored, a missing one has its default. Raises ValueError."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:  # of too many brackets or digits
            raise ValueError(f"{cls.__name__}: not JSON: {error}") from error
        record: Self = _from_document(cls, document)
        return record


def _read(value: object, hint: Any, low: int) -> Any:
    """Read a JSON value as a field of type `hint`, a number not below `low`. Raises ValueError."""
    options = get_args(hint)
    if get_origin(hint) is UnionType:
        if value is None and NoneType in options:
            return None
        return _read(value, next(option for option in options if option is not NoneType), low)
    if dataclasses.is_dataclass(hint):
        return _from_document(hint, value)
    if get_origin(hint) is tuple:
        if isinstance(value, list) and len(value) <= _MOST_ITEMS:
            return tuple(_read(item, options[0], low) for item in value)
        fits = False
    elif get_origin(hint) is Literal:
        fits = value in options
    elif hint in (int, float):
        # Of a float an integer will do; a boolean is neither, and no comparison holds of NaN.
        kinds = int if hint is int else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= LARGEST
    else:
        fits = isinstance(value, hint)
    if not fits:
        brief = type(value).__name__ if isinstance(value, (list, dict)) else repr(value)[:80]
        raise ValueError(f"cannot be {brief}")
    return value


def _from_document(cls: Any, document: object) -> Any:
    if not isinstance(document, dict):
        raise ValueError(f"{cls.__name__}: expected an object, got {type(document).__name__}")
    values: dict[str, Any] = {}
    hints = _hints(cls)
    for spec in dataclasses.fields(cls):
        optional = spec.default is not dataclasses.MISSING
        if spec.name not in document:
            if optional:
                continue
            raise ValueError(f"{cls.__name__}: {spec.name} is missing")
        low = int(not optional and getattr(cls, "POSITIVE", False))
        try:
            values[spec.name] = _read(document[spec.name], hints[spec.name], low)
        except ValueError as error:
            raise ValueError(f"{cls.__name__}: {spec.name} {error}") from error
    return cls(**values)
