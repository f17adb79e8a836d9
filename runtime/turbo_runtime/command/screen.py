"""What `turbo chat` shows: the answer as it grows, and a status line under it."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from turbo_runtime.command.stream import Progress

THOUGHT, STATUS = "dim italic", "cyan"
REFRESHES = 15  # a second


def status_line(progress: Progress) -> Text:
    """One line of figures; those that are not known are left out."""
    parts = [f"{progress.tokens} tokens"]
    if (rate := progress.tokens_per_second) is not None:
        parts.append(f"{rate:.{0 if rate >= 100 else 1}f} tokens/s")
    if progress.to_first is not None:
        parts.append(f"first after {progress.to_first:.2f} s")
    if progress.acceptance_length is not None:
        parts.append(f"{progress.acceptance_length:.1f} per draft")
    if progress.speedup is not None:
        parts.append(f"speed-up {progress.speedup:.2f}")
    return Text(" · ".join(parts), STATUS, no_wrap=True, overflow="ellipsis")


class AnswerScreen:
    """Finished lines scroll up as on any terminal; the line in progress and the status are drawn anew.

    To be used as a context manager; what is shown at its end stays.
    """

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._line = Text()
        self._live = Live(console=console, refresh_per_second=REFRESHES, transient=True)

    def __enter__(self) -> AnswerScreen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._line:
            self._console.print(self._line)
        self._console.print(status_line(self._progress), no_wrap=True, overflow="ellipsis")

    def add(self, thought: str, text: str) -> None:
        """Show more of the answer."""
        for piece, style in ((thought, THOUGHT), (text, "")):
            *lines, rest = piece.split("\n")
            for line in lines:
                self._line.append(line, style)
                self._console.print(self._line)
                self._line = Text()
            self._line.append(rest, style)
        self._live.update(self._shown())

    def _shown(self) -> RenderableType:
        return Group(self._line, status_line(self._progress))
