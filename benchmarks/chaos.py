"""Seeded faults against many TurboDeployments, two operators and a real API server, on KWOK's nodes.

After each fault the cluster has to come to what an operator that has just started would make of it, with no
orphan. The API server's audit log says of every instant that no budget was exceeded, that two operators never
wrote at once, and that no TurboDeployment had more than one variant too many.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import Bar, arguments, finish
from scale.faults import FAULTS, Fleet
from scale.fresh import is_settled, writes_of_a_fresh_operator
from scale.instants import Instants
from scale.seen import percentile

from turbo_dev.audit_reader import AuditReader
from turbo_dev.controlplane import ControlPlane, Settings
from turbo_dev.operated import manned
from turbo_dev.progress import say, step
from turbo_operator import resources

BARS = (
    Bar("faults", at_least=200),
    Bar("not_converged", at_most=0),
    Bar("orphans", at_most=0),
    Bar("replicas_over_budget", at_most=0),
    Bar("most_replicas_of_budget", at_least=1.0),  # or the budget was no bound
    Bar("writes_out_of_turn", at_most=0),
    Bar("most_variants", at_most=2),
    Bar("tracebacks", at_most=0),
)
NUM_OBJECTS = 50
PATIENCE = 240.0
LOOK_SECONDS = 1.0
LAG_SECONDS = 2.0  # before the first look: what nobody has noticed yet looks like convergence


def main() -> int:
    """Do the faults; exit status by the bars."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--faults", type=int, default=200, metavar="N")
    parser.add_argument("--objects", type=int, default=NUM_OBJECTS, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=sorted(FAULTS), help="one kind of fault")
    options = parser.parse_args()
    logging.getLogger("turbo_operator").setLevel(logging.ERROR)  # of the one that only looks
    with tempfile.TemporaryDirectory() as folder, _fleet(Path(folder), options.objects) as fleet:
        rows, figures = _torment(fleet, options)
    return finish("chaos", figures, rows, BARS, options)


@contextmanager
def _fleet(directory: Path, size: int) -> Iterator[Fleet]:
    plane = ControlPlane(directory / "plane", kwok=True, settings=Settings(audit_level="RequestResponse"))
    with plane as access, manned(access, directory, serves=False) as cluster:
        fleet = Fleet(plane, cluster, directory, size)
        try:
            yield fleet
        finally:
            fleet.close()


def _torment(fleet: Fleet, options: Any) -> tuple[list[dict[str, Any]], dict[str, float]]:
    dice = random.Random(options.seed)
    audit, instants = AuditReader(fleet.cluster.access), Instants(fleet.namespace, fleet.accounts)
    with step(f"{options.objects} objects become Ready", "1 min"):
        fleet.create()
        assert _converges(fleet, PATIENCE)[0], "the fleet does not come up"
    # Each kind as often as any other, in an order of the seed's.
    kinds = [options.only] if options.only else sorted(FAULTS)
    chosen = [kinds[number % len(kinds)] for number in range(options.faults)]
    dice.shuffle(chosen)
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    failed: defaultdict[str, int] = defaultdict(int)
    for number, kind in enumerate(chosen):
        start = time.monotonic()
        what = FAULTS[kind](fleet, dice)
        is_converged, problem = _converges(fleet, PATIENCE)
        seconds[kind].append(time.monotonic() - start)
        failed[kind] += not is_converged
        instants.follow(audit.read())
        instants.keep_only(fleet.deployments())
        say(f"{number + 1:4d} {kind}: {what}: {problem or f'{seconds[kind][-1]:.1f} s'}")
        fleet.recover()
    instants.follow(audit.read())
    rows = [
        {
            "fault": kind,
            "number": len(known),
            "median_seconds": percentile(known, 0.5),
            "worst_seconds": max(known),
            "not_converged": failed[kind],
        }
        for kind, known in sorted(seconds.items())
    ]
    for sentence in instants.out_of_turn[:10]:
        say(sentence)
    figures = {
        "faults": len(chosen),
        "not_converged": sum(failed.values()),
        "orphans": len(fleet.orphans()),
        "replicas_over_budget": max(0, instants.most_replicas - fleet.budget),
        "most_replicas_of_budget": instants.most_replicas / fleet.budget,
        "writes_out_of_turn": len(instants.out_of_turn),
        "most_variants": instants.most_variants,
        "tracebacks": fleet.tracebacks(),
        "takeover_median_seconds": percentile(fleet.takeovers, 0.5) if fleet.takeovers else 0.0,
        "takeover_worst_seconds": max(fleet.takeovers, default=0.0),
    }
    return rows, figures


def _converges(fleet: Fleet, patience: float) -> tuple[bool, str]:
    """Whether the cluster comes to what a fresh operator would make of it; what is still missing."""
    end, problem = time.monotonic() + patience, ""
    time.sleep(LAG_SECONDS)
    while time.monotonic() < end:
        problem = _problem(fleet)
        if not problem:
            return True, ""
        time.sleep(LOOK_SECONDS)
    return False, f"NOT CONVERGED: {problem}"


def _problem(fleet: Fleet) -> str:
    bodies = fleet.cluster.api.list(resources.TURBODEPLOYMENT, fleet.namespace)
    names = {body["metadata"]["name"] for body in bodies}
    if names != set(fleet.names):
        return f"there are {len(names)} objects"
    for body in bodies:
        if not is_settled(body):
            return f"the status of {body['metadata']['name']}: {json.dumps(body.get('status', {}))[:600]}"
    if lost := fleet.lost_pods():
        return f"pods on no node: {lost[:3]}"
    if orphans := fleet.orphans():
        return f"orphans: {orphans[:3]}"
    writes = writes_of_a_fresh_operator(fleet.cluster.role, fleet.namespace, fleet.settings)
    return f"a fresh operator would write: {writes[:3]}" if writes else ""


if __name__ == "__main__":
    sys.exit(main())
