"""Where torch's loops over all values of some rows begin and end on a CPU, and rows that they leave whole.

A loop computes as many values at a time as fill registers, and the rest one by one, with other bits of
exponentials. Above a number of values it is cut up among threads, wherever that is (at::parallel_for).
"""

from __future__ import annotations

from functools import cache

_REGISTERS = 64  # values that fill two registers of the widest kind, in bfloat16
_GRAIN = 32_768  # values, above which a loop is cut up (at::internal::GRAIN_SIZE)


def find_row_unit(width: int) -> int:
    """The unit of rows so wide whose values fill registers."""
    return 1 if width % _REGISTERS == 0 else 4


@cache
def split_rows(rows: int, width: int, threads: int) -> tuple[int, ...]:
    """Split rows into few parts that leave each row whole: no loop over a part's values begins or ends within
    registers.
    """
    unit, parts = find_row_unit(width), list[int]()
    while rows:
        whole = (count for count in range(rows, 0, -1) if count % unit == 0 or count == rows)
        parts.append(next((count for count in whole if _is_whole(count, width, threads)), min(unit, rows)))
        rows -= parts[-1]
    return tuple(parts)


def _is_whole(rows: int, width: int, threads: int) -> bool:
    values, unit = rows * width, find_row_unit(width)
    if values <= _GRAIN or threads == 1:
        return True
    part = -(-values // min(threads, -(-values // _GRAIN)))
    return part % (_REGISTERS if unit == 1 else unit * width) == 0
