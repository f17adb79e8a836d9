"""Text out of tokens as they come, never half a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# What a decoder writes for bytes that are no UTF-8, also for the first bytes of a character
REPLACEMENT = "\ufffd"
MAX_PENDING = 3  # tokens that begin a character of up to four bytes without ending it


class Detokenizer:
    """Incremental decoder of one answer: its parts joined equal the decoding of all tokens at once.

    A decoder's text for a token depends on the token before it (a leading space is stripped at the start), so
    each new part is the difference of two decodings that share a start: the tokens of the last part, without
    and with the new ones. A part waits while its end may be the start of a character.

    `tokenizers.DecodeStream` neither flushes half a character at the end nor bounds its window.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], is_skipped: Callable[[int], bool] = lambda _: False
    ) -> None:
        """Skipped tokens do not exist for the decoder: it drops them before it looks at the others."""
        self._decode = decode
        self._is_skipped = is_skipped
        self._window: list[int] = []  # the tokens of the last part, then those whose text waits
        self._num_settled = 0  # how many of them are the last part's
        self._settled_text = ""  # their decoding

    def push(self, token: int) -> str:
        """Return the text that one more token settles; often empty while a character is incomplete."""
        if self._is_skipped(token):
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        if not text.endswith(REPLACEMENT):
            return self._settle(text, len(self._window))
        num_certain = len(self._window) - MAX_PENDING
        if num_certain <= self._num_settled:
            return ""
        # No character is so long that later tokens could still complete these; a model that keeps writing
        # bytes that are no UTF-8 must not make the window ever longer.
        certain = self._decode(self._window[:num_certain])
        return self._settle(certain, num_certain) if text.startswith(certain) else ""

    def flush(self) -> str:
        """Return the text that waits, once no token follows: half a character as the decoder writes it."""
        if len(self._window) == self._num_settled:
            return ""
        return self._settle(self._decode(self._window), len(self._window))

    def _settle(self, text: str, num_tokens: int) -> str:
        """Return the new text of the window's first tokens, which start the next part."""
        part = text[len(self._settled_text) :]
        if not part:  # a token without text of its own is no start to measure from
            return ""
        self._window = self._window[self._num_settled :]
        self._num_settled = num_tokens - self._num_settled
        self._settled_text = self._decode(self._window[: self._num_settled])
        return part
