"""The model's own answers, kept on disk in groups that are whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from turbo_runtime.distill.looping import loops
from turbo_runtime.whole import write_whole

GROUP = 64  # answers that are asked for together, and that a kill loses at most


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt in tokens. `choice` tells apart several answers to the same one."""

    part: str  # what the answer is for
    domain: str
    prompt: tuple[int, ...]
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """What the model answered; a token that ended the answer is the last of `tokens`."""

    asked: Asked
    tokens: tuple[int, ...]

    @property
    def looping(self) -> bool:
        """Whether it says one thing over and over."""
        return loops(self.tokens)


Answer = Callable[[Sequence[Asked]], Sequence[tuple[int, ...]]]


def answer_all(
    asked: Sequence[Asked], folder: Path, answer: Answer, done: Callable[[int, bool], None]
) -> list[Said]:
    """All answers in the order asked, those that `folder` has from an earlier run, which asked the same,
    among them; `done` hears of each group how many they are, and whether they were there. Groups are always
    the same, so that what the model computes together is the same however often the work was broken off.
    """
    said: list[Said] = []
    for number, group in enumerate(_groups(asked)):
        file = folder / f"{number:05}.json"
        found = _read(file)
        known = found is not None
        if found is None:
            found = list(answer(group))
            write_whole(file, json.dumps(found))
        done(len(group), known)
        said += [Said(one, tokens) for one, tokens in zip(group, found, strict=True)]
    return said


def _groups(asked: Sequence[Asked]) -> Iterator[Sequence[Asked]]:
    for first in range(0, len(asked), GROUP):
        yield asked[first : first + GROUP]


def _read(file: Path) -> list[tuple[int, ...]] | None:
    """None where there are none yet."""
    if not file.is_file():
        return None
    return [tuple(tokens) for tokens in json.loads(file.read_text(encoding="utf-8"))]
