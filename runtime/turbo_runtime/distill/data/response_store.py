"""Answers that a distillation has left beside its artefact, for others of the same model to learn from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from turbo_runtime.atomic_write import write_whole
from turbo_runtime.distill.data.responses import Completion, asked_of, shared
from turbo_runtime.distill.errors import DistillError
from turbo_runtime.distill.recipe import HELD_OUT, JUDGES, TRAINING
from turbo_runtime.distill.workspace import made_by

ANSWERS_FILE = "answers.jsonl"
_PARTS = (HELD_OUT, JUDGES, TRAINING)  # a prompt of several is of the first of them


@dataclass(frozen=True, slots=True)
class Kept:
    """Answers, and which captured prompts are among theirs."""

    said: tuple[Completion, ...] = ()
    captures: tuple[Mapping[str, Any], ...] = ()  # as the artefacts tell of them

    def check(self, words: int, room: int) -> None:
        """Whether a model of so many tokens can read all of it, so many at a time. Raises DistillError."""
        for one in self.said:
            text = (*one.asked.prompt, *one.tokens)
            if not all(0 <= token < words for token in text):
                raise DistillError(f"of the answers that were kept one has a token that none of {words} is")
            if len(text) > room:
                raise DistillError(
                    f"of the answers that were kept one has {len(text)} tokens with its prompt, and there is "
                    f"room for {room}: raise --max-model-len"
                )

    @property
    def lines(self) -> list[str]:
        """All that is learnt from, a line an answer."""
        return [_line(one) for one in self.said]


def write_kept(out: Path, said: Iterable[Completion]) -> None:
    """Into the artefact's folder."""
    write_whole(out / ANSWERS_FILE, "".join(_line(one) + "\n" for one in said))


def read_kept(folders: Sequence[Path], target_digest: str) -> Kept:
    """Of artefacts of that model. A prompt that one of them held out is held out, whatever it was to another,
    and of such a prompt one answer counts, or else what a draft brings would be measured on what the engine
    has just said. The same answer counts once; the order of `folders` changes nothing. Raises DistillError.
    """
    said, captures = [], []
    for folder in folders:
        training = made_by(folder)
        if training is None:
            raise DistillError(f"{folder} holds no draft; name the folders of `turbo distill --keep-answers`")
        if (made_for := training["request"].get("target_digest")) != target_digest:
            raise DistillError(
                f"the answers of {folder} are those of another model: {made_for} and not {target_digest}"
            )
        if "capture" in training:
            captures.append(training["capture"])
        said += _read(folder / ANSWERS_FILE)
    part_of: dict[tuple[int, ...], str] = {}
    for one in said:
        prompt = one.asked.prompt
        part_of[prompt] = min(part_of.get(prompt, TRAINING), one.asked.part, key=_PARTS.index)
    dealt = {Completion(replace(one.asked, part=part_of[one.asked.prompt]), one.tokens) for one in said}
    once: dict[object, Completion] = {}
    for one in sorted(dealt, key=lot):
        asked = one.asked
        key = (asked.prompt, one.tokens if asked.part == TRAINING else None)
        if key not in once or asked.choice < once[key].asked.choice:
            once[key] = one
    return Kept(tuple(once.values()), tuple(captures))


def lot(one: Completion) -> bytes:
    """Orders answers, and likes are not beside each other."""
    return hashlib.blake2b(_line(one).encode(), digest_size=16).digest()


def _line(one: Completion) -> str:
    return json.dumps({**asdict(one.asked), "tokens": one.tokens})


def _read(file: Path) -> list[Completion]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DistillError(f"{file} is not there; distil with --keep-answers first") from None
    said = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            _PARTS.index(row["part"])
            said.append(Completion(asked_of(row), shared(row["tokens"])))
        except (ValueError, KeyError, TypeError) as error:
            raise DistillError(f"{file}, line {number}, is no answer that was kept; make it anew") from error
    return said
