"""Run a program to its end; a failure carries what the program said."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class CommandError(RuntimeError):
    """A program ended with an error; the message holds the command and the end of its output."""


def run(
    command: Sequence[str | Path],
    *,
    input: str | None = None,  # noqa: A002 - the name that subprocess.run uses
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> str:
    """Run `command` and return its standard output; CommandError when it fails or outlasts `timeout` s."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, input=input, cwd=cwd, env=env, timeout=timeout, text=True, capture_output=True, check=False
        )
    except FileNotFoundError as missing:
        raise CommandError(f"{words[0]}: no such program") from missing
    except subprocess.TimeoutExpired as late:
        raise CommandError(f"{' '.join(words)}: not done after {timeout} s") from late
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-4000:]
        raise CommandError(f"{' '.join(words)}: exit status {done.returncode}\n{said}")
    return done.stdout
