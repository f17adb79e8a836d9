"""Lines on the terminal that say what is being done, and for how long."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

TICK_SECONDS = 15.0


def say(text: str) -> None:
    """Print one line at once (standard error, so that a command's output stays clean)."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step(what: str, usually: str = "") -> Iterator[None]:
    """Say that `what` starts, remind every 15 s that it still runs, and say how long it took.

    `usually` is the time that the step is known to take, in words; it is shown at the start.
    """
    began = time.monotonic()
    done = threading.Event()

    def remind() -> None:
        while not done.wait(TICK_SECONDS):
            say(f"   ... {what}: {_elapsed(began)}")

    say(f" > {what}" + (f" (usually {usually})" if usually else ""))
    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield
    except BaseException:
        say(f" ! {what}: stopped after {_elapsed(began)}")
        raise
    finally:
        done.set()
        reminder.join()
    say(f" + {what}: {_elapsed(began)}")


def _elapsed(began: float) -> str:
    seconds = time.monotonic() - began
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
