"""How often a tensor is asked for its values, for which the host would wait for a device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from torch import Tensor

ASKING = ("item", "tolist", "cpu", "nonzero", "unique", "__bool__", "__int__", "__float__", "__index__")


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count, by the method of the tensor, until the end."""
    counts: Counter[str] = Counter()

    def counting(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **rest: object) -> object:
            counts[name] += 1
            return real(*args, **rest)

        return call

    with ExitStack() as patches:
        for name in ASKING:
            patches.enter_context(patch.object(Tensor, name, counting(name, getattr(Tensor, name))))
        yield counts
