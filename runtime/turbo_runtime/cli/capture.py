"""`turbo capture`: what prompts a deployment has kept, and the deletion of a tenant's."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from turbo_runtime.capture.segment_store import delete_tenant, is_capture, read, segments
from turbo_runtime.client.client import printable


def capture(argv: list[str]) -> int:
    """Exit status: 0, or 1 where the folder cannot be read or written."""
    parser = argparse.ArgumentParser(
        prog="turbo capture", description="Prompts that `turbo serve --capture-config` has kept."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="show | delete")
    show = verbs.add_parser("show", help="how many, of whom, from when to when")
    delete = verbs.add_parser("delete", help="all that one tenant has asked so far")
    for verb in (show, delete):
        verb.add_argument("folder", type=Path, metavar="DIR")
    delete.add_argument("--tenant", required=True, help="name of its API key; '' where there are no keys")
    options = parser.parse_args(argv)
    try:
        if not options.folder.is_dir():
            raise NotADirectoryError(f"{options.folder} is no folder; name the one that prompts are kept in")
        if not is_capture(options.folder):
            raise ValueError(f"{options.folder} holds other files; name the one of --capture-config")
        if options.verb == "show":
            _show(options.folder)
        else:
            _delete(options.folder, options.tenant)
    except (OSError, ValueError) as error:
        print(f"turbo capture: {error}", file=sys.stderr)
        return 1
    return 0


def _delete(folder: Path, tenant: str) -> None:
    num_deleted, num_remaining = delete_tenant(folder, tenant, time.time())
    if num_deleted or num_remaining:
        print(
            f"{num_deleted} prompts are deleted; "
            f"servers that run take {num_remaining} more out within seconds."
        )
    else:
        owner = printable(tenant) or "requests without a key"
        print(f"no prompt of {owner} is kept here; `turbo capture show` lists whose are")


def _show(folder: Path) -> None:
    stored = segments(folder)
    tenants: Counter[str] = Counter()
    times: list[float] = []
    for row in chain.from_iterable(read(segment.path) for segment in stored):
        tenants[str(row.get("tenant", ""))] += 1
        times.append(float(row["at"]))
    size = sum(segment.size for segment in stored)
    print(f"{tenants.total():,} prompts, {size / 2**20:.1f} MiB in {len(stored)} segments")
    if times:
        first, last = (datetime.fromtimestamp(at, UTC) for at in (min(times), max(times)))
        print(f"from {first.isoformat(timespec='seconds')} to {last.isoformat(timespec='seconds')}")
    for tenant, count in tenants.most_common():
        print(f"{count:>9,}  {printable(tenant) or '(no tenant: the server asks for no keys)'}")
