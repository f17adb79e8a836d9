"""Display of `turbo chat`: the answer as it grows, and a status line under it."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from turbo_runtime.client.sse import Progress
from turbo_runtime.client.terminal import printable

REASONING_STYLE, STATUS_STYLE = "dim italic", "cyan"
REFRESHES_PER_SECOND = 15
TAB_SIZE = 8


def format_status(progress: Progress) -> Text:
    """Format one line of figures; unknown ones are left out."""
    parts = [f"{progress.tokens} tokens"]
    if (rate := progress.tokens_per_second) is not None:
        parts.append(f"{rate:.{0 if rate >= 100 else 1}f} tokens/s")
    if progress.first_token_seconds is not None:
        parts.append(f"first after {progress.first_token_seconds:.2f} s")
    if progress.acceptance_length is not None:
        parts.append(f"{progress.acceptance_length:.1f} per draft")
    if progress.speedup is not None:
        parts.append(f"speed-up {progress.speedup:.2f}")
    return Text(" · ".join(parts), STATUS_STYLE, no_wrap=True, overflow="ellipsis")


class AnswerScreen:
    """Context manager that shows an answer: full rows scroll up as on any terminal; the row in progress and
    the status are drawn anew. What is shown at its end stays.

    Rows, not lines: what is drawn anew must fit the window, and a paragraph may not.
    """

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._row = Text()
        self._is_reasoning = False
        self._live = Live(console=console, refresh_per_second=REFRESHES_PER_SECOND, transient=True)

    def __enter__(self) -> AnswerScreen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._row:
            self._console.print(self._row)
        if self._progress.events:
            self._console.print(format_status(self._progress), no_wrap=True, overflow="ellipsis")

    def add(self, reasoning: str, text: str) -> None:
        """Show more of the answer."""
        if reasoning:
            self._append(reasoning, REASONING_STYLE)
            self._is_reasoning = True
        if text:
            self._append("\n\n" * self._is_reasoning + text, "")  # the server strips the space between them
            self._is_reasoning = False
        self._print_full_rows()
        self._live.update(Group(self._row, format_status(self._progress)))

    def _append(self, text: str, style: str) -> None:
        *lines, rest = printable(text).split("\n")
        for line in lines:
            self._row.append(line, style)
            self._console.print(self._row)
            self._row = Text()
        self._row.append(rest, style)

    def _print_full_rows(self) -> None:
        """White space at the end waits: the next word decides whether it ends the row."""
        self._row.expand_tabs(TAB_SIZE)
        words = self._row.copy()
        words.rstrip()
        space = self._row.plain[len(words) :][: self._console.width]
        *full, last = words.wrap(self._console, self._console.width) or [words]
        for row in full:
            self._console.print(row)
        self._row = last.append(space)
