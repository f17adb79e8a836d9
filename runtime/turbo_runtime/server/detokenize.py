"""Text out of tokens as they come, never half a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = (
    "\ufffd"  # what a decoder writes for bytes that are no UTF-8, also for the first bytes of a character
)


class Detokenizer:
    """Turns one answer's tokens into text piece by piece; the pieces joined equal the decoding of all
    tokens at once.

    A decoder's text for a token depends on the token before it (a leading space is stripped at the start),
    so each
    new piece is the difference of two decodings that share a start: the tokens of the last piece, without
    and with
    the new tokens. A piece waits while its end may be the beginning of a character whose other bytes are
    yet to come.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []  # the tokens of the last piece, then those whose text waits
        self._told = 0  # how many of them are the last piece's
        self._told_text = ""  # their decoding

    def push(self, token: int) -> str:
        """The text that one more token settles; often empty while a character is incomplete."""
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT):
            return ""
        return self._settle(text)

    def flush(self) -> str:
        """The text that still waited, once no token follows: half a character is then written as the
        decoder writes it.
        """
        return self._settle(self._decode(self._window)) if len(self._window) > self._told else ""

    def _settle(self, text: str) -> str:
        piece = text[len(self._told_text) :]
        if not piece:  # a token without text of its own is no start to measure from
            return ""
        self._window = self._window[self._told :]
        self._told = len(self._window)
        self._told_text = self._decode(self._window)
        return piece
