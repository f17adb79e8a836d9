"""What commands print, in the documents: every `console` block is a command line and its output.

`python -m turbo_dev.transcripts` runs them and writes what they print now; with `--check` it exits 1 and
names the documents that say something else.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .paths import REPOSITORY

_BLOCK = re.compile(r"^```console\n(\$ (?:[^\n]*\\\n)*[^\n]*\n).*?^```", re.M | re.S)
_INFEASIBLE = 2  # of turbo plan: an answer like any other


class FailedError(RuntimeError):
    """A command of a document cannot be run; the message says which."""


def documents() -> list[Path]:
    """Every document that may hold transcripts."""
    return sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])


def refreshed(text: str) -> str:
    """The text with the output of every command as it is now."""
    return _BLOCK.sub(lambda found: f"```console\n{found[1]}{_output(found[1])}```", text)


def _output(line: str) -> str:
    command, *words = shlex.split(line.removeprefix("$ ").replace("\\\n", " "))
    if command != "turbo":
        raise FailedError(f"only turbo is run for a transcript, not {command!r}")
    program = Path(sys.executable).with_name(command)
    done = subprocess.run([program, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode not in (0, _INFEASIBLE):
        raise FailedError(f"{line.strip()}: exit status {done.returncode}\n{done.stderr}")
    return "".join(f"{printed.rstrip()}\n" for printed in done.stdout.strip("\n").splitlines())


def main(argv: Sequence[str] | None = None) -> int:
    """Write, or with --check compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where a document is stale"
    )
    options = parser.parse_args(argv)
    stale = {
        path: new
        for path in documents()
        if (new := refreshed(path.read_text("utf-8"))) != path.read_text("utf-8")
    }
    for path, text in stale.items():
        if options.check:
            print(
                f"{path.relative_to(REPOSITORY)}: a command prints something else now: make generate",
                file=sys.stderr,
            )
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
