"""Answers outlive a kill by whole groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from turbo_runtime.distill.data.responses import GROUP, Completion, TokenizedPrompt, answer_all

ASKED = [TokenizedPrompt("training", "d", (number, 1)) for number in range(2 * GROUP + 5)]


class Model:
    """Answers with the prompt, and dies at the call after `lives`."""

    def __init__(self, lives: int = 99) -> None:
        self.lives, self.asked = lives, 0

    def __call__(
        self, group: Sequence[TokenizedPrompt], answered: Callable[[], None]
    ) -> list[tuple[int, ...]]:
        if not self.lives:
            raise KeyboardInterrupt
        self.lives -= 1
        self.asked += len(group)
        for _ in group:
            answered()
        return [(*one.prompt, 7) for one in group]


def test_what_was_answered_before_a_kill_is_not_asked_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        answer_all(ASKED, tmp_path, Model(lives=1), lambda *_: None)
    model, told = Model(), []
    said = answer_all(ASKED, tmp_path, model, lambda count, known: told.append((count, known)))
    assert said == [Completion(one, (*one.prompt, 7)) for one in ASKED]
    assert told == [(GROUP, True), *[(1, False)] * (GROUP + 5)]
    assert model.asked == GROUP + 5


def test_a_file_that_was_begun_is_not_read(tmp_path: Path) -> None:
    (tmp_path / ".00000.json.new").write_text("[[1, 2")
    assert len(answer_all(ASKED, tmp_path, Model(), lambda *_: None)) == len(ASKED)


@pytest.mark.parametrize("damage", ["[[1, 2", "[[1, 2]]", "7", '[["x"]]'])
def test_a_group_that_the_disk_has_lost_is_asked_again(tmp_path: Path, damage: str) -> None:
    whole = answer_all(ASKED, tmp_path, Model(), lambda *_: None)
    (tmp_path / "00001.json").write_text(damage)
    model = Model()
    assert answer_all(ASKED, tmp_path, model, lambda *_: None) == whole
    assert model.asked == GROUP
