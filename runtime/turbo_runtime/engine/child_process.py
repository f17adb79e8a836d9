"""How the processes below the server end: with whoever started them, and with a reason."""

from __future__ import annotations

import multiprocessing
import os
import signal


def die_with_parent() -> None:
    """End with the parent: one that was killed says nothing, and a child would hold its memory for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def describe_exit(code: int) -> str:
    """Say how a process ended, as the end of a sentence, by its `exitcode`."""
    if code >= 0:
        return f"ended with status {code}; its last lines above say why"
    if -code == signal.SIGKILL:
        return "was killed (SIGKILL), most often because it needed more memory than it may have"
    return f"died of {signal.Signals(-code).name}"
