"""The served model's tokenizer, from the folder that the engine exported, without transformers."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from turbo_runtime.parsers import OutputFormat
from turbo_runtime.tokenization.chat_template import ChatTemplate
from turbo_runtime.tokenization.token_bytes import build_token_bytes, max_token_bytes


class ServedTokenizer:
    """Text to token ids and back, by the tokenizer's own conventions."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        # A saved tokenizer may have the lengths of its training; a server truncates and pads nothing.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = _read_json(directory / "tokenizer_config.json")
        special = {
            name: text
            for name, value in config.items()
            if name.endswith("_token") and (text := _token_text(value))
        }
        self.eos_token_ids = self._read_eos_ids(special.get("eos_token"), directory)
        template = _read_template(config, directory)
        self.template = ChatTemplate(template, special) if template else None  # None: a base model
        self.output_format = OutputFormat.from_template(template or "")
        self.token_bytes = functools.cache(build_token_bytes(self._tokenizer))
        self.is_skipped = functools.cache(self._is_skipped)
        self._max_token_bytes = max_token_bytes(self._tokenizer)

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokenize a completion's prompt; the tokenizer itself decides about a begin-of-sequence token."""
        return self._encode(text, special=True)

    def encode_written(self, text: str) -> tuple[int, ...]:
        """Tokenize a text in which every special token is written out, as a chat template does it."""
        return self._encode(text, special=False)

    def _encode(self, text: str, special: bool) -> tuple[int, ...]:
        # The batched call releases the interpreter's lock, so that a long prompt in a thread blocks nobody.
        (encoded,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
        return tuple(encoded.ids)

    def min_tokens(self, text: str) -> int:
        """Return a lower bound of a text's tokens; cheap, and often far too low."""
        return 1 if self._max_token_bytes is None else max(len(text.encode()) // self._max_token_bytes, 1)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's tokens, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def decode_exactly(self, ids: Sequence[int]) -> str | None:
        """Return the text that `encode_written` turns into these tokens; None where there is none."""
        text = str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
        return text if self.encode_written(text) == tuple(ids) else None

    def _is_skipped(self, token: int) -> bool:
        """Whether `decode` skips a token: a special one, or an id that pads the model's vocabulary."""
        added = self._tokenizer.get_added_tokens_decoder().get(token)
        return self._tokenizer.id_to_token(token) is None or (added is not None and added.special)

    def _read_eos_ids(self, eos_token: str | None, directory: Path) -> frozenset[int]:
        own = None if eos_token is None else self._tokenizer.token_to_id(eos_token)
        value = _read_json(directory / "generation_config.json").get("eos_token_id")
        configured = value if isinstance(value, list) else [value]
        return frozenset(token for token in (own, *configured) if token is not None)


def _read_json(path: Path) -> dict[str, Any]:
    """Read an optional file of the folder; empty if it does not exist."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ValueError(f"{path.name}: expected an object, got {type(document).__name__}")
    return document


def _token_text(value: Any) -> str | None:
    """A special token is stored as its text, or as an object that holds it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read_template(config: Mapping[str, Any], directory: Path) -> str | None:
    path = directory / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several templates by name: the plain one is called default
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else None
