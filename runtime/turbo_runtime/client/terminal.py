"""Text of a server, made safe for a terminal."""

from __future__ import annotations

# Control characters but line feed and tab could move the cursor, set the title or fill the clipboard; halves
# of a pair of UTF-16 cannot be printed at all.
_UNPRINTABLE: dict[int, str | None] = {
    **{code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}"),
}


def printable(text: str) -> str:
    """Return the text without what a terminal would obey."""
    return text.translate(_UNPRINTABLE)
