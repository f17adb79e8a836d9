"""The model's own answers, kept on disk in groups that are whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from turbo_runtime.atomic_write import write_whole
from turbo_runtime.distill.data.repetition import loops

GROUP = 64  # answers that are asked for together, and that a kill loses at most
_TOKENS: dict[int, int] = {}


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt in tokens. `choice` tells apart several answers to the same one."""

    part: str  # what the answer is for
    domain: str
    prompt: tuple[int, ...]
    choice: int = 0
    temperature: float = 0.0  # that the answer is drawn at
    seed: int = 0  # of the noise that it is drawn with; greedy answers have none


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model answered; a token that ended the answer is the last of `tokens`."""

    asked: TokenizedPrompt
    tokens: tuple[int, ...]

    @property
    def looping(self) -> bool:
        """Whether it says one thing over and over."""
        return loops(self.tokens)


def asked_of(row: Mapping[str, Any]) -> TokenizedPrompt:
    """From the fields in a file. Raises KeyError, TypeError or ValueError for what is none."""
    return TokenizedPrompt(
        str(row["part"]),
        str(row["domain"]),
        shared(row["prompt"]),
        int(row["choice"]),
        float(row["temperature"]),
        int(row["seed"]),
    )


def shared(tokens: Iterable[Any]) -> tuple[int, ...]:
    """A token is one object however often it occurs: of many prompts that takes a quarter of the memory."""
    return tuple(_TOKENS.setdefault(token, token) for token in map(int, tokens))


def write_asked(file: Path, asked: Iterable[TokenizedPrompt]) -> None:
    """A line each."""
    write_whole(file, "".join(json.dumps(asdict(one)) + "\n" for one in asked))


def read_asked(file: Path) -> list[TokenizedPrompt] | None:
    """None where there is nothing yet, or nothing that can be read any more."""
    try:
        with file.open(encoding="utf-8") as lines:
            return [asked_of(json.loads(line)) for line in lines]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


# what is asked, and what hears of each answer once it is whole
Answer = Callable[[Sequence[TokenizedPrompt], Callable[[], None]], Sequence[tuple[int, ...]]]


def answer_all(
    asked: Sequence[TokenizedPrompt], folder: Path, answer: Answer, done: Callable[[int, bool], None]
) -> list[Completion]:
    """All answers in the order asked, those that `folder` has from an earlier run, which asked the same,
    among them; `done` hears of each how many more are there, and whether they were before. Groups are always
    the same, so that what the model computes together is the same however often the work was broken off.
    """
    said: list[Completion] = []
    for number, group in enumerate(_groups(asked)):
        file = folder / f"{number:05}.json"
        found = _read(file)
        if found is not None and len(found) == len(group):
            done(len(group), True)
        else:
            found = list(answer(group, lambda: done(1, False)))
            write_whole(file, json.dumps(found))
        said += [Completion(one, tokens) for one, tokens in zip(group, found, strict=True)]
    return said


def _groups(asked: Sequence[TokenizedPrompt]) -> Iterator[Sequence[TokenizedPrompt]]:
    for first in range(0, len(asked), GROUP):
        yield asked[first : first + GROUP]


def _read(file: Path) -> list[tuple[int, ...]] | None:
    """None where there are none yet, or none that can be read any more: a disk may lose what it took."""
    try:
        return [shared(tokens) for tokens in json.loads(file.read_text(encoding="utf-8"))]
    except (FileNotFoundError, ValueError, TypeError):
        return None
