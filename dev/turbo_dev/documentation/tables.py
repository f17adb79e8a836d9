"""Cells of Markdown tables."""

from __future__ import annotations

import re


def cell(text: str) -> str:
    """`text` on one line, with what a table or the page would read as marks escaped."""
    return re.sub(r"([|<*])", r"\\\1", " ".join(text.split()))


def long_name(text: str) -> str:
    """A name as code that a narrow column may break after a dot or an underscore."""
    return f"<code>{re.sub(r'(?<=[._])(?=.)', '<wbr>', text)}</code>"
