"""Writes the generated parts of the documentation.

`python -m turbo_dev.documentation` writes all of them; names (`reference`, `diagrams`, `figures`, `screens`)
restrict it. With `--check` it exits 1 and names the files that differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from turbo_dev.paths import REPOSITORY

from . import diagrams, figures, reference, screens

GENERATORS: dict[str, Callable[[], dict[Path, str]]] = {
    "reference": reference.pages,
    "diagrams": diagrams.images,
    "figures": figures.images,
    "screens": screens.images,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, or with --check compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(GENERATORS)}")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is stale")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(GENERATORS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    stale = []
    for name in options.names or GENERATORS:
        for path, text in GENERATORS[name]().items():
            if path.is_file() and path.read_text("utf-8") == text:
                continue
            stale.append(path)
            if not options.check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    for path in stale:
        relative = path.relative_to(REPOSITORY)
        print(f"{relative} is stale: run make generate" if options.check else relative, file=sys.stderr)
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
