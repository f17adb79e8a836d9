"""The answers that a draft brings: with them a server that has just started drafts as one that gave them.

Their file is one of safetensors, under a name that no engine takes for weights: the token ids of all answers,
the length of each, and whose each is. An answer to a prompt of the operator is for all tenants. One to a
captured prompt is for the tenant that sent it, since response times reveal what is drafted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from turbo_runtime.files import write_whole_by

MEMORY_FILE = "memory.st"
MAX_MIB = 2.0  # of a file
MAX_TOKENS = 1 << 16  # for all, and for each tenant: what a history holds
PROMPT_TAIL = 8  # tokens of the prompt kept before an answer, so that its beginning matches too
_ID_BYTES = 4
_HEADER_BYTES = 1 << 16
_DTYPE = np.int32
_NAMES = ("tokens", "lengths", "owners")


class DraftMemoryError(ValueError):
    """The file cannot be used; one sentence says why and what to do."""


class Answer(NamedTuple):
    """The tokens of an answer and of the end of its prompt."""

    tokens: tuple[int, ...]
    tenant: str | None = None  # the only one that may draft from it; None: all may


@dataclass(frozen=True, slots=True, eq=False)
class DraftMemory:
    """The answers of one draft."""

    answers: tuple[Answer, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(len(answer.tokens) for answer in self.answers)

    def summary(self) -> dict[str, int]:
        """What the configuration of the draft says of it."""
        shared = sum(answer.tenant is None for answer in self.answers)
        return {"answers": len(self.answers), "shared": shared, "tokens": self.num_tokens}


def select_answers(answers: Iterable[Answer], max_mib: float) -> DraftMemory:
    """Keep each once, the first ones, as far as the file and what a server holds have room."""
    chosen: dict[tuple[int, ...], Answer] = {}
    room, tokens = max_mib * 2**20, dict[str | None, int]()
    for answer in sorted(answers, key=lambda answer: answer.tenant is not None):  # those for all come first
        size = _ID_BYTES * (len(answer.tokens) + 2)
        total = tokens.get(answer.tenant, 0) + len(answer.tokens)
        known = chosen.get(answer.tokens)
        if size <= room and total <= MAX_TOKENS and known is None:
            chosen[answer.tokens] = answer
            room -= size
            tokens[answer.tenant] = total
    return DraftMemory(tuple(chosen.values()))


def write_memory(folder: Path, memory: DraftMemory, target_digest: str) -> None:
    """Write it beside a checkpoint for that model."""
    tenants = sorted({answer.tenant for answer in memory.answers if answer.tenant is not None})
    places = {tenant: place for place, tenant in enumerate(tenants)}
    columns: tuple[Sequence[int], ...] = (
        [token for answer in memory.answers for token in answer.tokens],
        [len(answer.tokens) for answer in memory.answers],
        [-1 if answer.tenant is None else places[answer.tenant] for answer in memory.answers],
    )
    tensors = {name: np.array(column, _DTYPE) for name, column in zip(_NAMES, columns, strict=True)}
    about = {"target_digest": target_digest, "tenants": json.dumps(tenants)}
    write_whole_by(folder / MEMORY_FILE, partial(save_file, tensors, metadata=about))


def read_memory(folder: Path, target_digest: str, vocabulary: int) -> DraftMemory | None:
    """Read what lies beside a checkpoint; None where nothing does. Raises DraftMemoryError."""
    file = folder / MEMORY_FILE
    remedy = "copy the draft anew, or remove the file to draft without its answers"
    if not file.exists():
        return None
    try:
        if file.stat().st_size > MAX_MIB * 2**20 + _HEADER_BYTES:
            raise DraftMemoryError(f"{file} is larger than {MAX_MIB:g} MiB; {remedy}")
        with safe_open(file, framework="numpy") as opened:
            about = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in _NAMES}
        tenants = json.loads(about.get("tenants", "[]"))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        if isinstance(error, DraftMemoryError):
            raise
        raise DraftMemoryError(f"{file} cannot be read: {error}; {remedy}") from error
    if (made_for := about.get("target_digest")) != target_digest:
        raise DraftMemoryError(f"{file} is of another model: {made_for} and not {target_digest}; {remedy}")
    if not _is_sound(tensors, tenants, vocabulary):
        raise DraftMemoryError(f"{file} does not hold answers in tokens of this model; {remedy}")
    tokens, lengths, owners = (tensors[name].tolist() for name in _NAMES)
    answers, start = [], 0
    for length, owner in zip(lengths, owners, strict=True):
        answers.append(Answer(tuple(tokens[start : start + length]), None if owner < 0 else tenants[owner]))
        start += length
    return DraftMemory(tuple(answers))


def _is_sound(tensors: Mapping[str, Any], tenants: object, vocabulary: int) -> bool:
    """Whether lengths, owners and ids are of one file, and the ids of the model."""
    tokens, lengths, owners = (tensors[name] for name in _NAMES)
    if not all(tensor.dtype == _DTYPE and tensor.ndim == 1 for tensor in tensors.values()):
        return False
    if not isinstance(tenants, list) or not all(isinstance(tenant, str) for tenant in tenants):
        return False
    return bool(
        len(lengths) == len(owners)
        and (lengths > 0).all()
        and int(lengths.sum(dtype=np.int64)) == len(tokens)
        and ((tokens >= 0) & (tokens < vocabulary)).all()
        and ((owners >= -1) & (owners < len(tenants))).all()
    )
