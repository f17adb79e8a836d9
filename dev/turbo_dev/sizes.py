"""How large a proof is: enough to find what it is there to find, or as large as `make test-full` makes it."""

from __future__ import annotations

import os

IS_FULL = "TURBO_TEST_FULL" in os.environ


def size(usual: int, full: int) -> int:
    """The number of examples, histories or the like that this run tries."""
    return full if IS_FULL else usual
