"""Bytes of single tokens, for logprobs: half a character has bytes and no text of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def build_token_bytes(tokenizer: Tokenizer) -> Callable[[int], bytes]:
    """Return a function from a token id to its bytes, by the kind of the tokenizer's decoder.

    A byte-level vocabulary writes each byte as a letter (GPT-2); others write `▁` for a space and `<0x0A>`
    for a byte without a letter (SentencePiece). Special tokens stand for their own text.
    """
    document = json.loads(tokenizer.to_str())
    added = {entry["id"]: entry["content"].encode() for entry in document["added_tokens"]}
    decode = _decode_letters if _is_byte_level(document["decoder"]) else _decode_piece

    def token_bytes(token: int) -> bytes:
        if token in added:
            return bytes(added[token])
        text = tokenizer.id_to_token(token)  # None for an id that pads the model's vocabulary
        return b"" if text is None else decode(text)

    return token_bytes


def max_token_bytes(tokenizer: Tokenizer) -> int | None:
    """Return the maximum bytes of text that one token can stand for; None where no bound is known.

    It is known of BPE over bytes, where every byte of a text is part of one token, unless something else
    removes bytes.
    """
    document = json.loads(tokenizer.to_str())
    model, splitter = document["model"], json.dumps(document["pre_tokenizer"])
    if model["type"] != "BPE" or model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
        return None
    by_letter = '"ByteLevel"' in splitter
    letters = _BYTES if by_letter else [f"<0x{byte:02X}>" for byte in range(256)]
    is_complete = all(tokenizer.token_to_id(letter) is not None for letter in letters)
    strips = any(entry["lstrip"] or entry["rstrip"] for entry in document["added_tokens"])
    factor = _max_shrinkage(document["normalizer"])
    if not (by_letter or model.get("byte_fallback")) or not is_complete or strips or '"Removed"' in splitter:
        return None
    if factor is None:
        return None
    token_bytes = build_token_bytes(tokenizer)
    return factor * max(len(token_bytes(token)) for token in range(tokenizer.get_vocab_size()))


def _max_shrinkage(normalizer: dict[str, Any] | None) -> int | None:
    """Return how many times shorter a normalizer can make a text; None where that is not known."""
    if normalizer is None:
        return 1
    if normalizer["type"] == "NFC":
        return 3  # three letters of Hangul, of three bytes each, are one of three
    if normalizer == {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
        return 3  # a text's own ▁ has three bytes, and its token counts as a space
    return None


def _is_byte_level(decoder: dict[str, Any] | None) -> bool:
    if decoder is None:
        return False
    return decoder["type"] == "ByteLevel" or any(map(_is_byte_level, decoder.get("decoders", ())))


# GPT-2's table: printable bytes are their own letter, the others follow from U+0100 on.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}


def _decode_letters(text: str) -> bytes:
    return b"".join(bytes([_BYTES[letter]]) if letter in _BYTES else letter.encode() for letter in text)


def _decode_piece(text: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(match[1], 16)]) if match else text.replace("▁", " ").encode()
