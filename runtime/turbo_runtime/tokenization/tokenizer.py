"""The served model's tokenizer and chat template, from the folder that the engine exported."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from turbo_runtime.files import read_object

# What a decoder writes for bytes that are no UTF-8, also for the first bytes of a character
REPLACEMENT = "\ufffd"
MAX_PENDING = 3  # tokens that begin a character of up to four bytes without ending it

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# GPT-2's table: printable bytes are their own letter, the others follow from U+0100 on.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}


class TemplateRefusalError(ValueError):
    """Rejection of the messages, in the template's own words."""


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; for a prompt it changes nothing."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """Template of a model, run as Hugging Face does it; `names` are the variables that it reads."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        # templates write the local day
        environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)  # noqa: DTZ005
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)
        self.source = source
        self.names = frozenset(meta.find_undeclared_variables(environment.parse(source)))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Render the prompt, up to the assistant's turn. Raises TemplateRefusalError."""
        variables = {
            **(extra or {}),
            **self._special_tokens,
            "messages": list(messages),
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            return self._template.render(variables)
        except Exception as error:  # a model's program, run on what a client sent: it may raise anything
            raise TemplateRefusalError(str(error)) from error


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # jinja2's own filter escapes for HTML, which would change the prompt; the arguments are transformers'
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class ServedTokenizer:
    """Text to token ids and back, by the tokenizer's own conventions."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        # A saved tokenizer may have the lengths of its training; a server truncates and pads nothing.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = _read_json(directory / "tokenizer_config.json")
        special = {}
        for name, value in config.items():
            text = value.get("content") if isinstance(value, dict) else value  # tokens are stored either way
            if name.endswith("_token") and text and isinstance(text, str):
                special[name] = text
        own = self._tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None
        value = _read_json(directory / "generation_config.json").get("eos_token_id")
        configured = value if isinstance(value, list) else [value]
        self.eos_token_ids = frozenset(token for token in (own, *configured) if token is not None)
        template = _read_template(config, directory)
        self.template = ChatTemplate(template, special) if template else None  # None: a base model
        self.token_bytes = functools.cache(build_token_bytes(self._tokenizer))
        self.is_skipped = functools.cache(self._is_skipped)
        self._max_token_bytes = max_token_bytes(self._tokenizer)

    def encode_written(self, text: str) -> tuple[int, ...]:
        """Tokenize a text in which every special token is written out, as a chat template does it."""
        return self.encode(text, special=False)

    def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """Tokenize a completion's prompt; the tokenizer itself decides about a begin-of-sequence token."""
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


def _read_json(path: Path) -> dict[str, Any]:
    """Read an optional file of the folder; empty if it does not exist."""
    return read_object(path, ValueError, "copy the model's folder anew") if path.exists() else {}


def _read_template(config: Mapping[str, Any], directory: Path) -> str | None:
    path = directory / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several templates by name: the plain one is called default
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def build_token_bytes(tokenizer: Tokenizer) -> Callable[[int], bytes]:
    """Return a function from a token id to its bytes: half a character has bytes and no text of its own.

    A byte-level vocabulary writes each byte as a letter (GPT-2); others write `▁` for a space and `<0x0A>`
    for a byte without a letter (SentencePiece). Special tokens stand for their own text.
    """
    document = json.loads(tokenizer.to_str())
    added = {entry["id"]: entry["content"].encode() for entry in document["added_tokens"]}
    is_byte_level = '"ByteLevel"' in json.dumps(document["decoder"])

    def token_bytes(token: int) -> bytes:
        if token in added:
            return bytes(added[token])
        text = tokenizer.id_to_token(token) or ""  # None for an id that pads the model's vocabulary
        if is_byte_level:
            return b"".join(bytes([_BYTES[one]]) if one in _BYTES else one.encode() for one in text)
        match = _BYTE_TOKEN.fullmatch(text)
        return bytes.fromhex(match[1]) if match else text.replace("▁", " ").encode()

    return token_bytes


def max_token_bytes(tokenizer: Tokenizer) -> int | None:
    """Return the most bytes of text of one token; None unless BPE makes every byte part of a token."""
    document = json.loads(tokenizer.to_str())
    model, splitter = document["model"], json.dumps(document["pre_tokenizer"])
    if model["type"] != "BPE" or model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
        return None
    by_letter = '"ByteLevel"' in splitter
    letters = _BYTES if by_letter else [f"<0x{byte:02X}>" for byte in range(256)]
    is_complete = all(tokenizer.token_to_id(letter) is not None for letter in letters)
    strips = any(entry["lstrip"] or entry["rstrip"] for entry in document["added_tokens"])
    factor = _max_shrinkage(document["normalizer"])
    has_bytes = is_complete and (by_letter or model.get("byte_fallback"))
    if factor is None or not has_bytes or strips or '"Removed"' in splitter:
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
