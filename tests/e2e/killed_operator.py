"""Runs the operator and kills it, with SIGKILL, at one point: `killed_operator.py PHASE:N:MOMENT`.

PHASE is observe, apply, prune or status; N counts the calls of that phase, from 1; MOMENT is before or after
the call, or a number of milliseconds into it. The product knows nothing of this: its functions are wrapped
from outside.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from turbo_operator.controller import reconciler
from turbo_operator.controller.kube import Kube

PHASES: dict[str, tuple[Any, str]] = {
    "observe": (reconciler, "build_snapshot"),
    "apply": (Kube, "apply"),
    "prune": (Kube, "delete"),
    "status": (Kube, "apply_status"),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killing(call: Callable[..., Any], number: int, moment: str) -> Callable[..., Any]:
    """`call`, deadly the `number`th time."""
    calls = itertools.count(1)

    def observed(*arguments: Any, **options: Any) -> Any:
        deadly = next(calls) == number
        if deadly and moment == "before":
            die()
        result = call(*arguments, **options)
        if deadly:
            die()
        return result

    async def requested(*arguments: Any, **options: Any) -> Any:
        if next(calls) != number:
            return await call(*arguments, **options)
        if moment == "before":
            die()
        request = asyncio.ensure_future(call(*arguments, **options))
        if moment == "after":
            await request
        else:
            await asyncio.wait([request], timeout=float(moment) / 1000)
        die()
        return None

    return requested if asyncio.iscoroutinefunction(call) else observed


def main() -> int:
    phase, number, moment = sys.argv[1].split(":")
    owner, name = PHASES[phase]
    setattr(owner, name, killing(getattr(owner, name), int(number), moment))
    from turbo_operator.cli.commands import operator

    return operator([])


if __name__ == "__main__":
    sys.exit(main())
