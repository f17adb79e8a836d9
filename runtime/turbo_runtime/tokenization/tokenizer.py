"""The served model's tokenizer, read from the folder that the engine exported, without torch or
transformers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from turbo_runtime.parsers import OutputFormat
from turbo_runtime.tokenization.chat_template import ChatTemplate
from turbo_runtime.tokenization.token_bytes import longest_token, token_bytes_of


class ServedTokenizer:
    """Text to token ids and back, by the tokenizer's own conventions."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        # A saved tokenizer may carry the lengths of its training; a server cuts and pads nothing.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = _read_json(directory / "tokenizer_config.json")
        special = {
            name: text
            for name, value in config.items()
            if name.endswith("_token") and (text := _content(value))
        }
        self.eos_token_ids = self._end_of_sequence(special, directory)
        template = _template_source(config, directory)
        self.template = ChatTemplate(template, special) if template else None  # None: a base model
        self.output_format = OutputFormat.of(template or "")
        self.bytes_of = functools.cache(token_bytes_of(self._tokenizer))
        self.is_silent = functools.cache(self._is_silent)
        self._longest = longest_token(self._tokenizer)

    def encode(self, text: str) -> tuple[int, ...]:
        """A completion's prompt; whether it starts with a begin-of-sequence token is the tokenizer's own
        rule.
        """
        return self._ids(text, special=True)

    def encode_written(self, text: str) -> tuple[int, ...]:
        """A text in which every special token is written out, as a chat's template does it."""
        return self._ids(text, special=False)

    def _ids(self, text: str, special: bool) -> tuple[int, ...]:
        # The batched call lets go of the interpreter's lock, so that a long prompt in a thread stops nobody.
        (encoded,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
        return tuple(encoded.ids)

    def least_tokens(self, text: str) -> int:
        """How many tokens a text has at the least; cheap, and often far too few."""
        return 1 if self._longest is None else max(len(text.encode()) // self._longest, 1)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def written(self, ids: Sequence[int]) -> str | None:
        """The text of which `encode_written` makes these tokens, special ones written out; None where there
        is no such text, as of tokens that are no whole characters.
        """
        text = str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
        return text if self.encode_written(text) == tuple(ids) else None

    def _is_silent(self, token: int) -> bool:
        """Whether `decode` leaves a token out: a special one, or an id that pads the model's vocabulary."""
        added = self._tokenizer.get_added_tokens_decoder().get(token)
        return self._tokenizer.id_to_token(token) is None or (added is not None and added.special)

    def _end_of_sequence(self, special: Mapping[str, str], directory: Path) -> frozenset[int]:
        found: set[int] = set()
        if "eos_token" in special:
            token = self._tokenizer.token_to_id(special["eos_token"])
            if token is not None:
                found.add(token)
        value = _read_json(directory / "generation_config.json").get("eos_token_id")
        found.update(value if isinstance(value, list) else [] if value is None else [value])
        return frozenset(found)


def _read_json(path: Path) -> dict[str, Any]:
    """An optional file of the folder; empty where it is not there."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ValueError(f"{path.name}: expected an object, got {type(document).__name__}")
    return document


def _content(value: Any) -> str | None:
    """A special token is stored as its text, or as an object that holds it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _template_source(config: Mapping[str, Any], directory: Path) -> str | None:
    path = directory / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    stored = config.get("chat_template")
    if isinstance(stored, list):  # several templates by name: the plain one is called default
        stored = next((entry["template"] for entry in stored if entry.get("name") == "default"), None)
    return stored if isinstance(stored, str) else None
