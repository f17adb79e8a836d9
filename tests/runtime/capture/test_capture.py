"""The thread that writes outlives whatever the disk says, and requests never wait for it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from turbo_runtime.capture import recorder as module
from turbo_runtime.capture import segment_store
from turbo_runtime.capture.recorder import Capture, CapturedPrompt
from turbo_runtime.capture.segment_store import delete_tenant, read, segments


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Capture]:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    settings = tmp_path / "capture.json"
    settings.write_text(json.dumps({"folder": str(tmp_path / "kept"), "maxMib": 1}))
    found = Capture(settings)
    yield found
    found.close()


def asked(text: str | None, tenant: str = "a") -> CapturedPrompt:
    return CapturedPrompt(tenant, lambda: text)


def rows(where: Path) -> list[dict[str, Any]]:
    return [row for each in segments(where / "kept") for row in read(each.path)]


class Full:
    """A disk without room: neither a write nor the end of the file goes through."""

    def __init__(self, file: Any) -> None:
        self._file, self.name = file, file.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def flush(self) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        self._file.close()
        self.flush()


def test_a_full_disk_costs_prompts_and_nothing_else(
    kept: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.offer(asked("one"), None)
    until(lambda: kept.outcomes["kept"] == 1)
    file = kept._file
    assert file is not None
    kept._file = Full(file)  # type: ignore[assignment]
    kept.offer(asked("two"), None)
    until(lambda: kept.outcomes["failed"] == 1)
    assert "No space left on device" in kept.problem
    kept.offer(asked("three"), None)
    until(lambda: kept.outcomes["kept"] == 2)
    assert kept.problem == ""
    assert "three" in [row["text"] for row in rows(tmp_path)]


def test_a_list_of_the_deleted_that_cannot_be_read_stops_nothing_and_is_told(
    kept: Capture, tmp_path: Path
) -> None:
    kept.offer(asked("one"), None)
    until(lambda: kept.outcomes["kept"] == 1)
    (tmp_path / "kept" / segment_store.DELETED).write_text("[]")
    until(lambda: "does not say whose prompts" in kept.problem)
    kept.offer(asked("two"), None)
    until(lambda: kept.outcomes["kept"] == 2)
    (tmp_path / "kept" / segment_store.DELETED).unlink()
    until(lambda: kept.problem == "")


def test_a_prompt_that_waited_while_its_tenant_was_deleted_goes_too(kept: Capture, tmp_path: Path) -> None:
    kept.offer(asked("x", "b"), None)
    until(lambda: kept.outcomes["kept"] == 1)
    before = CapturedPrompt("a", lambda: "asked before", at=time.time() - 5)
    delete_tenant(tmp_path / "kept", "a", time.time())
    kept.offer(before, None)
    kept.offer(asked("asked after"), None)
    until(lambda: sum(kept.outcomes.values()) == 3)
    until(lambda: sorted(row["text"] for row in rows(tmp_path)) == ["asked after", "x"])


def test_the_bound_of_the_folder_holds_and_the_newest_prompts_stay(kept: Capture, tmp_path: Path) -> None:
    for number in range(300):
        kept.offer(asked(f"{number} " + "x" * 8000), None)
        until(lambda number=number: sum(kept.outcomes.values()) == number + 1)
    until(lambda: sum(each.size for each in segments(tmp_path / "kept")) <= 1 << 20)
    left = [int(row["text"].split()[0]) for row in rows(tmp_path)]
    assert max(left) == 299
    assert left == list(range(min(left), 300))
    assert len(left) > 60


def test_what_no_text_says_and_what_comes_too_fast_is_counted(kept: Capture) -> None:
    kept.offer(asked(None), None)
    until(lambda: kept.outcomes["ambiguous"] == 1)
    kept.offer(CapturedPrompt("a", lambda: time.sleep(0.3) or "slow"), None)
    for _ in range(module.WAITING + 20):
        kept.offer(asked("fast"), None)
    assert kept.outcomes["overrun"] >= 19


def test_a_quarter_of_the_prompts_is_about_a_quarter(tmp_path: Path) -> None:
    settings = tmp_path / "capture.json"
    settings.write_text(json.dumps({"folder": str(tmp_path / "kept"), "sampleFraction": 0.25}))
    capture = Capture(settings)
    for _ in range(4000):
        capture.offer(asked(None), None)  # nothing that can be written
    capture.close()
    share = 1 - capture.outcomes["not_sampled"] / 4000
    assert abs(share - 0.25) < 0.05  # of seven standard deviations
