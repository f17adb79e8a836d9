"""Array types of the planner, and selection from records of arrays. Pure."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]
Selector = NDArray[np.integer[Any]] | slice | tuple[Any, ...]
Record = TypeVar("Record", bound="DataclassInstance")


def take(record: Record, selector: Selector) -> Record:
    """Select elements of every array in a record; other fields stay as they are."""

    def select(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value[selector]
        return take(value, selector) if hasattr(type(value), "__dataclass_fields__") else value

    return type(record)(*(select(getattr(record, name)) for name in _names(type(record))))


@functools.cache
def _names(kind: type[DataclassInstance]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))
