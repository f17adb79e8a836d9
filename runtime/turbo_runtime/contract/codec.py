"""Reading JSON documents into records: what another version, or another program, has written is refused in a
sentence and never passes for numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Document = TypeVar("Document")
_hints = functools.cache(get_type_hints)  # most of what reading a document would take


# A count that no counter of 64 bits holds is nonsense, and a float of it an error.
LARGEST = (1 << 63) - 1
_MOST_ITEMS = 16  # of a list in a document


def _read(value: object, hint: Any, least: int) -> Any:
    """A JSON value as a field of type `hint`, a number not below `least`; ValueError where it does not fit.

    The writer's image is the user's choice: a document of another program must not pass for numbers.
    """
    if get_origin(hint) is Literal:
        fits = value in get_args(hint)
    elif get_origin(hint) is UnionType:
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        return _read(value, next(each for each in options if each is not type(None)), least)
    elif get_origin(hint) is tuple:
        if isinstance(value, list) and len(value) <= _MOST_ITEMS:
            return tuple(_read(each, get_args(hint)[0], least) for each in value)
        fits = False
    elif dataclasses.is_dataclass(hint):
        return _from_document(hint, value)
    elif hint in (int, float):
        # Of a float an integer will do; a boolean is neither, and no comparison holds of NaN.
        fits = (
            isinstance(value, int if hint is int else (int, float))
            and not isinstance(value, bool)
            and least <= value <= LARGEST
        )
    else:
        fits = isinstance(value, hint)
    if not fits:
        said = type(value).__name__ if isinstance(value, (list, dict)) else repr(value)[:80]
        raise ValueError(f"cannot be {said}")
    return value


def from_json(cls: type[Document], text: str) -> Document:
    """The record that a JSON text holds: unknown keys are passed over, a missing one is what its default
    says. Raises ValueError with a sentence.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:  # too many brackets or digits are no JSON of ours either
        raise ValueError(f"{cls.__name__}: not JSON: {error}") from error
    found: Document = _from_document(cls, document)
    return found


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
        least = int(not optional and getattr(cls, "POSITIVE", False))
        try:
            values[spec.name] = _read(document[spec.name], hints[spec.name], least)
        except ValueError as error:
            raise ValueError(f"{cls.__name__}: {spec.name} {error}") from error
    return cls(**values)
