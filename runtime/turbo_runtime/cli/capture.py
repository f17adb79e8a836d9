"""`turbo capture`: what prompts a deployment has kept, and taking a tenant's out again."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from turbo_runtime.capture.segment_store import delete_tenant, is_capture, read, segments
from turbo_runtime.client.terminal import printable


def capture(argv: list[str]) -> int:
    """Exit status: 0, or 1 where the folder cannot be read or written."""
    options = _parser().parse_args(argv)
    try:
        if not options.folder.is_dir():
            raise NotADirectoryError(f"{options.folder} is no folder; name the one that prompts are kept in")
        if not is_capture(options.folder):
            raise ValueError(f"{options.folder} holds other files, and no prompts; name the one of --capture")
        if options.verb == "show":
            _show(options.folder)
        else:
            gone, left = delete_tenant(options.folder, options.tenant, time.time())
            if gone or left:
                print(f"{gone} prompts are deleted; servers that run take {left} more out within seconds.")
            else:
                whose = printable(options.tenant) or "requests without a key"
                print(f"no prompt of {whose} is kept here; `turbo capture show` lists whose are")
    except (OSError, ValueError) as error:
        print(f"turbo capture: {error}", file=sys.stderr)
        return 1
    return 0


def _show(folder: Path) -> None:
    found = segments(folder)
    tenants: Counter[str] = Counter()
    first = last = None
    for each in found:
        for row in read(each.path):
            tenants[str(row.get("tenant", ""))] += 1
            at = float(row["at"])
            first, last = min(first or at, at), max(last or at, at)
    size = sum(each.size for each in found)
    print(f"{tenants.total():,} prompts, {size / 2**20:.1f} MiB in {len(found)} segments")
    if first is not None and last is not None:
        print(f"from {_told(first)} to {_told(last)}")
    for tenant, count in tenants.most_common():
        print(f"{count:>9,}  {printable(tenant) or '(no tenant: the server asks for no keys)'}")


def _told(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="turbo capture", description="Prompts that `turbo serve --capture` has kept."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="show | delete")
    shown = verbs.add_parser("show", help="how many, of whom, from when to when")
    shown.add_argument("folder", type=Path, metavar="DIR")
    deleted = verbs.add_parser("delete", help="all that one tenant has asked so far")
    deleted.add_argument("folder", type=Path, metavar="DIR")
    deleted.add_argument("--tenant", required=True, help="name of its API key; '' where there are no keys")
    return parser
