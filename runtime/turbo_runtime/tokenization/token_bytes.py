"""The bytes of single tokens, as logprobs tell them: half a character has bytes and no text of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes_of(tokenizer: Tokenizer) -> Callable[[int], bytes]:
    """A function from a token id to its bytes, by the kind of the tokenizer's decoder.

    A byte-level vocabulary writes each byte as a letter (GPT-2); others write `▁` for a space and `<0x0A>`
    for a byte without a letter (SentencePiece). Special tokens stand for their own text.
    """
    document = json.loads(tokenizer.to_str())
    added = {entry["id"]: entry["content"].encode() for entry in document["added_tokens"]}
    plain = _from_letters if _has_byte_level(document["decoder"]) else _from_pieces

    def bytes_of(token: int) -> bytes:
        if token in added:
            return bytes(added[token])
        text = tokenizer.id_to_token(token)  # None for an id that pads the model's vocabulary
        return b"" if text is None else plain(text)

    return bytes_of


def longest_token(tokenizer: Tokenizer) -> int | None:
    """The most bytes of a text that one token can stand for; None where no such bound is known.

    It is known of BPE over bytes, where every byte of a text is part of one token, unless something else
    takes bytes away.
    """
    document = json.loads(tokenizer.to_str())
    model, splitter = document["model"], json.dumps(document["pre_tokenizer"])
    if model["type"] != "BPE" or model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
        return None
    by_letter = '"ByteLevel"' in splitter
    letters = _LETTERS if by_letter else [f"<0x{byte:02X}>" for byte in range(256)]
    known = all(tokenizer.token_to_id(letter) is not None for letter in letters)
    eats = any(entry["lstrip"] or entry["rstrip"] for entry in document["added_tokens"])
    factor = _shrinks(document["normalizer"])
    if not (by_letter or model.get("byte_fallback")) or not known or eats or '"Removed"' in splitter:
        return None
    if factor is None:
        return None
    bytes_of = token_bytes_of(tokenizer)
    return factor * max(len(bytes_of(token)) for token in range(tokenizer.get_vocab_size()))


def _shrinks(normalizer: dict[str, Any] | None) -> int | None:
    """How many times shorter a normalizer makes a text at most; None where that is not known."""
    if normalizer is None:
        return 1
    if normalizer["type"] == "NFC":
        return 3  # three letters of Hangul, of three bytes each, are one of three
    if normalizer == {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
        return 3  # a text's own ▁ has three bytes, and its token counts as a space
    return None


def _has_byte_level(decoder: dict[str, Any] | None) -> bool:
    if decoder is None:
        return False
    return decoder["type"] == "ByteLevel" or any(map(_has_byte_level, decoder.get("decoders", ())))


def _byte_of_letter() -> dict[str, int]:
    """GPT-2's table: printable bytes are their own letter, the others follow from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_LETTERS = _byte_of_letter()


def _from_letters(text: str) -> bytes:
    return b"".join(bytes([_LETTERS[one]]) if one in _LETTERS else one.encode() for one in text)


def _from_pieces(text: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(match[1], 16)]) if match else text.replace("▁", " ").encode()
