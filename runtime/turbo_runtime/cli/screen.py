"""What `turbo chat` shows: the answer as it grows, and a status line under it."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from turbo_runtime.client.sse import Progress
from turbo_runtime.client.terminal import printable

THOUGHT, STATUS = "dim italic", "cyan"
REFRESHES = 15  # a second
TAB = 8


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
    """Rows that are full scroll up as on any terminal; the row in progress and the status are drawn anew.

    Rows, not lines: what is drawn anew must fit the window, and a paragraph may not. To be used as a context
    manager; what is shown at its end stays.
    """

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._row = Text()
        self._thinking = False
        self._live = Live(console=console, refresh_per_second=REFRESHES, transient=True)

    def __enter__(self) -> AnswerScreen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._row:
            self._console.print(self._row)
        if self._progress.events:
            self._console.print(status_line(self._progress), no_wrap=True, overflow="ellipsis")

    def add(self, thought: str, text: str) -> None:
        """Show more of the answer."""
        if thought:
            self._append(thought, THOUGHT)
            self._thinking = True
        if text:
            self._append("\n\n" * self._thinking + text, "")  # the server strips what parted them
            self._thinking = False
        self._print_full_rows()
        self._live.update(self._shown())

    def _append(self, piece: str, style: str) -> None:
        *lines, rest = printable(piece).split("\n")
        for line in lines:
            self._row.append(line, style)
            self._console.print(self._row)
            self._row = Text()
        self._row.append(rest, style)

    def _print_full_rows(self) -> None:
        """White space at the end waits: whether it ends the row is known with the next word."""
        self._row.expand_tabs(TAB)
        words = self._row.copy()
        words.rstrip()
        space = self._row.plain[len(words) :][: self._console.width]
        *full, last = words.wrap(self._console, self._console.width) or [words]
        for row in full:
            self._console.print(row)
        self._row = last.append(space)

    def _shown(self) -> RenderableType:
        return Group(self._row, status_line(self._progress))
