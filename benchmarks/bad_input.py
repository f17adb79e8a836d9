"""Wrong objects against a real API server and the operator.

Mutations of good objects, each in one place that the schema of its kind knows: a wrong type, a value at or
beyond a bound, a field that is not there or that is no field. Each must be refused by the API server with a
message, or get a condition that speaks of it. The operator must log no traceback, and good objects beside
them must stay Ready.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from harness import Bar, arguments, finish

from turbo_dev.api import ApiRefusalError
from turbo_dev.audit_reader import AuditReader
from turbo_dev.controlplane import ControlPlane, Settings
from turbo_dev.mutations import Mutation, mutations
from turbo_dev.operated import OperatedCluster, condition, is_ready, manned, until
from turbo_dev.progress import say, step
from turbo_operator import resources
from turbo_operator.api import API_VERSION, crd

BARS = (
    Bar("unanswered", at_most=0),
    Bar("tracebacks", at_most=0),
    Bar("good_disturbed", at_most=0),
    Bar("mutations", at_least=500),
)
GOOD, WRONG = "good", "wrong"
NUM_GOOD = 5
BATCH = 25
# Of kinds whose objects the operator says something of; the others are only read.
TOLD = ("TurboDeployment", "TurboBudget")
RESOURCES = {resource.kind: resource for resource in resources.OWN}


def bases() -> dict[str, dict[str, Any]]:
    """Good objects, from the smallest to one with most fields."""

    def body(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "x"}, "spec": spec}

    model = {"uri": "pvc://models/smollm2.gguf"}
    full = {
        "model": {"uri": "hf://a/b", "name": "b", "maxModelLen": 2048},
        "accelerators": {"allowed": ["cpu"], "capacityTypes": ["OnDemand"], "maxTotal": 4},
        "workload": {"inputTokens": {"mean": 100}, "outputTokens": {"mean": 20}, "requestsPerSecond": "0.1"},
        "targets": {"timePerOutputToken": {"max": "1s", "percentile": 95}},
        "cost": {"maxPerHour": "1.00"},
        "scaling": {"mode": "Metrics", "minReplicas": 1, "maxReplicas": 2},
        "speculation": {"mode": "Auto", "maxDraftTokens": 8},
        "rollout": {"maxSurge": 1, "minReadySeconds": 0},
        "podTemplate": {
            "metadata": {"labels": {"team": "a"}},
            "spec": {"env": [{"name": "A", "value": "b"}]},
        },
    }
    pricing = {"perAcceleratorHour": {"onDemand": "0.04"}, "source": "set by the benchmark"}
    cores = {
        "resourceName": "cpu",
        "quantity": "1",
        "memory": "4Gi",
        "provisioning": "Elastic",
        "pricing": pricing,
    }
    draft = {
        "method": "TurboHeads",
        "location": {"claimName": "drafts", "path": "a/b"},
        "version": "v",
        "digest": f"sha256:{'1' * 64}",
        "targetDigest": f"sha256:{'0' * 64}",
    }
    found = {
        "small": body("TurboDeployment", {"model": model, "accelerators": {"allowed": ["cpu"]}}),
        "budget": body("TurboBudget", {"maxPerHour": "10.00"}),
        "accelerator": body("TurboAccelerator", cores),
        "draft": body("TurboDraft", draft),
    }
    # Most of what users write is the first kind: six of ten mutations are of the full one.
    return found | {f"full-{number}": body("TurboDeployment", full) for number in range(6)}


def main() -> int:
    """Try all; exit status by the bars."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--mutations", type=int, default=500, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    schemas = {
        definition["spec"]["names"]["kind"]: definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for definition in crd.definitions()
    }
    todo = mutations(bases(), schemas, options.mutations, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        plane = ControlPlane(directory / "plane", settings=Settings(audit_level="RequestResponse"))
        with plane as access, manned(access, directory) as cluster:
            operator = cluster.start()
            for namespace in (GOOD, WRONG):
                cluster.namespace(namespace)
            with step("good objects become Ready", "30 s"):
                for number in range(NUM_GOOD):
                    cluster.create_deployment(GOOD, f"good-{number}")
                for number in range(NUM_GOOD):
                    cluster.until_ready(GOOD, f"good-{number}")
            writes = AuditReader(access, f'"namespace":"{GOOD}"')
            writes.read()  # of what came before
            outcomes, silent = _try_all(cluster, todo)
            disturbed = _disturbed(cluster, writes)
            is_alive = operator.process.poll() is None
            log = operator.log.read_text(encoding="utf-8", errors="replace")
    kinds = Counter(mutation.body["kind"] for mutation in todo)
    rows = [
        {
            "kind": kind,
            "mutations": count,
            **{name: outcomes[kind, name] for name in ("refused", "told", "read")},
        }
        for kind, count in sorted(kinds.items())
    ]
    for sentence in silent:
        say(f"unanswered: {sentence}")
    figures = {
        "mutations": len(todo),
        "refused": sum(count for (_, name), count in outcomes.items() if name == "refused"),
        "told": sum(count for (_, name), count in outcomes.items() if name == "told"),
        "unanswered": len(silent),
        "tracebacks": log.count("Traceback") + (not is_alive),
        "good_disturbed": disturbed,
    }
    if figures["tracebacks"]:
        say(log[log.find("Traceback") :][:4000])
    return finish("bad_input", figures, rows, BARS, options)


def _try_all(cluster: OperatedCluster, todo: list[Mutation]) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Create all, some at a time; how many were refused, told of or only read, and what got no answer."""
    outcomes: Counter[tuple[str, str]] = Counter()
    silent: list[str] = []
    for start in range(0, len(todo), BATCH):
        batch, taken = todo[start : start + BATCH], list[Mutation]()
        for mutation in batch:
            resource = RESOURCES[mutation.body["kind"]]
            if resource.namespaced:
                mutation.body["metadata"]["namespace"] = WRONG
            try:
                cluster.api.create(resource, mutation.body)
            except ApiRefusalError as error:
                if error.status < 500 and "spec" in str(error):
                    outcomes[resource.kind, "refused"] += 1
                else:
                    silent.append(f"{mutation.what}: {error}")
            else:
                taken.append(mutation)
        for mutation in taken:
            kind = mutation.body["kind"]
            if kind not in TOLD:
                outcomes[kind, "read"] += 1
            elif _is_told(cluster, mutation):
                outcomes[kind, "told"] += 1
            else:
                silent.append(f"{mutation.what}: it has no condition")
        for mutation in taken:
            resource, meta = RESOURCES[mutation.body["kind"]], mutation.body["metadata"]
            cluster.api.send("DELETE", resource.path(meta.get("namespace"), meta["name"]))
        say(f"{start + len(batch)} of {len(todo)}")
    return outcomes, silent


def _is_told(cluster: OperatedCluster, mutation: Mutation) -> bool:
    """Whether a condition with a reason and a sentence comes to speak of the object as it is."""
    resource, name = RESOURCES[mutation.body["kind"]], mutation.body["metadata"]["name"]

    def told() -> bool:
        body = cluster.api.get(resource, WRONG, name)
        assert body is not None
        conditions = body.get("status", {}).get("conditions", ())
        return any(
            each["reason"]
            and each["message"]
            and each["observedGeneration"] == body["metadata"]["generation"]
            for each in conditions
        )

    try:
        until(told, mutation.what, seconds=60.0)
    except AssertionError:
        return False
    return True


def _disturbed(cluster: OperatedCluster, writes: AuditReader) -> int:
    """Count good objects that any status write has shown not to be Ready, or that are not now."""
    time.sleep(1.0)
    shown = {
        event["objectRef"]["name"]
        for event in writes.read()
        if event["objectRef"].get("subresource") == "status"
        and event["objectRef"]["resource"] == "turbodeployments"
        and condition(event.get("responseObject") or {}, "Ready")["status"] not in ("True", "Absent")
    }
    names = [f"good-{number}" for number in range(NUM_GOOD)]
    return len(shown | {name for name in names if not is_ready(cluster.deployment(GOOD, name))})


if __name__ == "__main__":
    sys.exit(main())
