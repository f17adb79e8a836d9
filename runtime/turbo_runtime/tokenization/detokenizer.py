"""Text out of tokens as they come, never half a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = (
    "\ufffd"  # what a decoder writes for bytes that are no UTF-8, also for the first bytes of a character
)

PENDING = 3  # tokens at most that begin a character of up to four bytes without ending it


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

    def __init__(
        self, decode: Callable[[Sequence[int]], str], silent: Callable[[int], bool] = lambda _: False
    ) -> None:
        """`silent` tokens are none to the decoder: it leaves them out before it looks at the others."""
        self._decode = decode
        self._silent = silent
        self._window: list[int] = []  # the tokens of the last piece, then those whose text waits
        self._told = 0  # how many of them are the last piece's
        self._told_text = ""  # their decoding

    def push(self, token: int) -> str:
        """The text that one more token settles; often empty while a character is incomplete."""
        if self._silent(token):
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        if not text.endswith(REPLACEMENT):
            return self._settle(text, len(self._window))
        known = len(self._window) - PENDING
        if known <= self._told:
            return ""
        # No character is so long that what is behind can still mend what is before; a model that writes
        # bytes that are no UTF-8, on and on, must not make the window ever longer.
        before = self._decode(self._window[:known])
        return self._settle(before, known) if text.startswith(before) else ""

    def flush(self) -> str:
        """The text that still waited, once no token follows: half a character is then written as the
        decoder writes it.
        """
        if len(self._window) == self._told:
            return ""
        return self._settle(self._decode(self._window), len(self._window))

    def _settle(self, text: str, tokens: int) -> str:
        """Tell the text of the window's first tokens; they are the next piece's start."""
        piece = text[len(self._told_text) :]
        if not piece:  # a token without text of its own is no start to measure from
            return ""
        self._window = self._window[self._told :]
        self._told = tokens - self._told
        self._told_text = self._decode(self._window[: self._told])
        return piece
