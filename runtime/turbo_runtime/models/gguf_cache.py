"""A GGUF file is parsed once at start, not once by each of those who read it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any


@contextmanager
def gguf_parsed_once() -> Iterator[None]:
    """Within it, whoever opens the same GGUF file to read gets the same reader.

    transformers parses the file for the tokenizer, for the configuration and for the weights, and so does
    the digest; it also makes a table of tensor names once for every module of the model. Each takes
    seconds, and none changes what it has read. Not for several threads at a time.
    """
    import gguf  # here, since only this format needs it

    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    read = cache(reader)

    def opened(path: str | Path) -> Any:
        return read(Path(path).resolve())

    gguf.GGUFReader, gguf.get_tensor_name_map = opened, cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names
