"""One line for each stage, with the time that is left; a terminal shows it in one place."""

from __future__ import annotations

import io
import time

import httpx
import pytest

from turbo_runtime.contract.documents import JobProgress
from turbo_runtime.distill import progress
from turbo_runtime.distill.progress import Progress, serve_progress, spell


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (754, "12 min 34 s"), (7500, "2 h 05 min")],
)
def test_durations_are_for_people(seconds: float, told: str) -> None:
    assert spell(seconds) == told


def test_what_an_earlier_run_has_done_does_not_make_the_rest_look_quick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, stream = [100.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress(stream)
    with shown.stage("answers", 1000, "prompts", 900) as advance:
        now[0] = 101.0
        assert stream.getvalue() == f"{shown.line()}\n" == "answers         900/1,000 prompts\n"
        advance(10)
        now[0] = 105.0
        assert shown.line() == "answers         910/1,000 prompts  45 s left"
        now[0] = 150.0
    assert stream.getvalue().endswith("answers         910/1,000 prompts  in 50 s\n")


def test_a_log_gets_a_line_now_and_then_and_a_terminal_one_that_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for stream, every in ((io.StringIO(), 15.0), (Terminal(), 0.2)):
        with Progress(stream).stage("training", 4, "steps") as advance:
            for _ in range(4):
                now[0] += every * 0.6
                advance()
        told = stream.getvalue()
        assert told.count("training") == 4  # the first, two on the way, the last
        assert told.count("\n") == (1 if isinstance(stream, Terminal) else 4)


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_stage_of_one_long_unit_shows_the_time_that_it_takes(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO
) -> None:
    monkeypatch.setattr(progress, "LIVE_SECONDS", 0.01)
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_UNIT_SECONDS", 0.0)
    with Progress(stream).stage("states", 1, "part") as advance:
        deadline = time.monotonic() + 10
        while stream.getvalue().count("0/1 part  for 0 s") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stream.getvalue().count("states            0/1 part  for 0 s") >= 3
        advance()
    shown = stream.getvalue()
    assert shown.endswith("states            1/1 part  in 0 s\n")
    time.sleep(0.05)
    assert stream.getvalue() == shown


def test_a_stage_that_breaks_off_leaves_the_terminal_a_new_line() -> None:
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), Progress(stream).stage("training", 4, "steps"):
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("\n")


def test_how_far_it_is_is_told_over_http_while_it_works() -> None:
    progress = Progress(io.StringIO())
    with serve_progress(0, lambda: progress.now) as port:
        url = f"http://127.0.0.1:{port}/progress"
        assert JobProgress.from_json(httpx.get(url).text).stage == "start"
        with progress.stage("training", 8, "steps") as advance:
            advance(2, known=True)
            advance(2)
            told = JobProgress.from_json(httpx.get(url).text)
            assert (told.stage, told.done, told.total, told.unit) == ("training", 4, 8, "steps")
            assert told.left_seconds is not None
        assert httpx.get(f"http://127.0.0.1:{port}/else").status_code == 404
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    with serve_progress(None, lambda: progress.now) as port:
        assert port is None
