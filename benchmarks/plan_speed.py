"""How long plans take: of the whole catalog, of `turbo plan` as a process, of 1,000 TurboDeployments in one
operator whose liveness probe must answer throughout.

The operator is the real one, against a real API server, under the chart's own role. Its 1,000 objects are
there before it starts, all different, with what the inspect Job would have found out; the clock runs from the
start of its process until the last of them has its plan in its status.
"""

from __future__ import annotations

import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import yaml
from harness import Bar, arguments, finish

from turbo_dev.access import Access, kubeconfig
from turbo_dev.binaries import ensure
from turbo_dev.controlplane import ControlPlane, free_port
from turbo_dev.release import UNUSED_IMAGES
from turbo_dev.shell import run
from turbo_operator import api, planner, resources
from turbo_operator.catalog import catalog, shapes, shipped_objects
from turbo_operator.render import model_configmap
from turbo_operator.snapshot import Accelerator
from turbo_runtime.contract.documents import ModelInfo, ModelShape

BARS = (
    Bar("plans_without_a_candidate", at_most=0),
    Bar("plan_ms_max", at_most=150),
    Bar("process_s_median", at_most=1.0),
    Bar("fleet", at_least=1000),
    Bar("fleet_s", at_most=30),
    Bar("liveness_s_max", at_most=1.0),
)
ROOT = Path(__file__).resolve().parent.parent
MODELS = (
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen/Qwen3-32B",
    "meta-llama/Llama-3.1-70B-Instruct",
    "deepseek-ai/DeepSeek-R1",
)
FLEET_MODEL = "meta-llama/Llama-3.1-8B-Instruct"
DRAFT = "HuggingFaceTB/SmolLM2-135M-Instruct"
SPOT, RESERVED = Decimal("0.4"), Decimal("0.6")  # of the price on demand: any will do, none is shipped
REPEATS, PROCESS_REPEATS = 20, 7
PATIENCE = 180.0  # seconds; a fleet that is not planned by then is a missed bar
SYSTEM, RELEASE = "turbo-system", "turbo"
FIELD_MANAGER = "turbo-operator"


def main() -> int:
    """Run all parts; exit status by the bars."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--fleet", type=int, default=1000, help="TurboDeployments in the operator; 0: no cluster"
    )
    options = parser.parse_args()
    rows, plan_figures = _plans()
    figures = {**plan_figures, "process_s_median": round(_process(), 3)}
    if options.fleet:
        figures |= _fleet(options.fleet)
    bars = [bar for bar in BARS if bar.figure in figures]
    return finish("plan_speed", figures, rows, bars, options)


# One plan


def _plans() -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Each model under three workloads, the whole catalog at three prices, every engine and method."""
    accelerators = _at_three_prices(catalog())
    rows, times, refused = [], [], 0
    for model in MODELS:
        shape = _shape(model)
        for load, spec in _specs(model).items():
            inputs = planner.PlannerInputs(spec, shape, accelerators, None, None, {}, _draft(shape))
            planned = partial(planner.plan, inputs, 0.0)
            taken = [_timed(planned) for _ in range(REPEATS)]
            plan = planned()
            times += taken
            refused += not (plan.choice or plan.rejected)
            chosen = plan.choice.accelerator.name if plan.choice else plan.reason
            rows.append(
                {
                    "model": model,
                    "load": load,
                    "answer": chosen,
                    "median_ms": statistics.median(taken) * 1000,
                    "max_ms": max(taken) * 1000,
                }
            )
    return rows, {
        "accelerators": len(accelerators),
        "plans": len(times),
        "plans_without_a_candidate": refused,
        "plan_ms_median": round(statistics.median(times) * 1000, 1),
        "plan_ms_max": round(max(times) * 1000, 1),
    }


def _at_three_prices(accelerators: Mapping[str, Accelerator]) -> dict[str, Accelerator]:
    """The catalog with a spot and a reserved price for whatever has one on demand."""
    priced = {}
    for name, row in accelerators.items():
        base = row.prices.get(api.CapacityType.ON_DEMAND)
        prices = dict(row.prices)
        if base is not None:
            prices |= {api.CapacityType.SPOT: base * SPOT, api.CapacityType.RESERVED: base * RESERVED}
        priced[name] = replace(row, prices=prices)
    return priced


def _specs(model: str) -> dict[str, api.TurboDeploymentSpec]:
    every = {
        "accelerators": {"capacityTypes": [str(kind) for kind in api.CapacityType]},
        "speculation": {"draftModel": {"uri": f"hf://{DRAFT}"}},
    }
    loads: dict[str, dict[str, Any]] = {
        "none": {},
        "4 requests/s": {"workload": {"requestsPerSecond": "4"}},
        "40 requests/s, 40 ms": {
            "workload": {"requestsPerSecond": "40"},
            "targets": {"timePerOutputToken": {"max": "40ms"}, "timeToFirstToken": {"max": "2s"}},
        },
    }
    return {name: _deployment("bench", model, **every, **load).spec for name, load in loads.items()}


def _deployment(name: str, model: str, **spec: Any) -> api.TurboDeployment:
    return api.parse(_document(name, model, **spec))


def _document(name: str, model: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": api.API_VERSION,
        "kind": api.TURBODEPLOYMENT,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"model": {"uri": f"hf://{model}"}, **spec},
    }


def _shape(model: str) -> ModelShape:
    shape = shapes.shipped(model)
    if shape is None:
        raise LookupError(f"{model} has no shipped shape")
    return shape


def _draft(shape: ModelShape) -> ModelShape:
    """A small model of the model's own vocabulary, as a draft must have it."""
    return replace(_shape(DRAFT), vocab_size=shape.vocab_size)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# One process


def _process() -> float:
    """Median seconds of `turbo plan` from start to exit."""
    turbo = Path(sys.executable).with_name("turbo")
    command: list[str | Path] = [
        turbo,
        "plan",
        "-f",
        ROOT / "examples" / "smollm2.yaml",
        "--model",
        MODELS[0],
    ]
    return statistics.median(_timed(lambda: run(command)) for _ in range(PROCESS_REPEATS))


# One operator


def _fleet(number: int) -> dict[str, float]:
    """Figures of an operator that finds `number` TurboDeployments and has planned none of them."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ControlPlane(Path(folder) / "plane") as access,
        _administrator(access) as client,
    ):
        role = _install(access, Path(folder))
        _create(client, number)
        _say(f"{number} TurboDeployments are there")
        log = Path(folder) / "operator.log"
        with _operator(role, log) as health:
            probe = _Probe(health)
            planned = list(_planned(client, number, time.monotonic()))
            waited = probe.stop()
        if len(planned) < number:
            _say(
                f"only {len(planned)} of {number} have a plan after {PATIENCE:.0f} s; the operator said last:"
            )
            _say(log.read_text(encoding="utf-8")[-2000:])
    return {
        "fleet": len(planned),
        "fleet_first_s": round(planned[0], 1) if planned else PATIENCE,
        "fleet_s": round(planned[-1], 1) if len(planned) == number else PATIENCE,
        "liveness_probes": len(waited),
        "liveness_s_max": round(max(waited, default=PATIENCE), 3),
    }


@contextmanager
def _administrator(access: Access) -> Iterator[httpx.Client]:
    """Plain requests to the API server, under no name of the operator's."""
    with httpx.Client(
        base_url=access.url,
        verify=ssl.create_default_context(cafile=str(access.ca)),
        headers={"Authorization": f"Bearer {access.token}"},
        timeout=60.0,
        trust_env=False,
    ) as client:
        yield client


def _install(access: Access, folder: Path) -> Path:
    """CRDs, the chart's role and the catalog; the kubeconfig of the operator's service account."""
    helm = ensure(("helm",))["helm"]
    chart = ROOT / "charts" / "turbo"
    rendered = run([helm, "template", RELEASE, chart, "--namespace", SYSTEM, *UNUSED_IMAGES])
    documents = [document for document in yaml.safe_load_all(rendered) if document]
    access.kubectl("create", "namespace", SYSTEM)
    access.apply(*(each for each in documents if each["kind"] == "CustomResourceDefinition"))
    access.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    roles = [each for each in documents if each["kind"] == "ServiceAccount" or "rbac" in each["apiVersion"]]
    # Without nodes, what grows on demand is what can be planned.
    access.apply(
        *({**each, "spec": {**each["spec"], "provisioning": "Elastic"}} for each in shipped_objects())
    )
    bundle = json.dumps({"apiVersion": "v1", "kind": "List", "items": roles})
    access.kubectl("apply", "--server-side", "-n", SYSTEM, "-f", "-", input=bundle)
    token = access.kubectl("create", "token", RELEASE, "-n", SYSTEM, "--duration=2h").strip()
    if access.ca is None:
        raise LookupError("the control plane has no certificate authority of its own")
    path = folder / "operator.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(kubeconfig(access.url, access.ca.read_text(), token), encoding="utf-8")
    return path


def _create(client: httpx.Client, number: int) -> None:
    """The TurboDeployments, each with another load, and beside each the ConfigMap of its inspect Job."""
    facts = ModelInfo(_shape(FLEET_MODEL), "sha256:" + "0" * 64, None, 16_000_000_000)

    def create(index: int) -> None:
        load = {"inputTokens": {"mean": 200 + index}, "requestsPerSecond": f"{1 + index % 50}"}
        document = _document(f"fleet-{index:04}", FLEET_MODEL, workload=load)
        created = _sent(client.post(resources.TURBODEPLOYMENT.path("default"), json=document))
        kept = model_configmap(api.parse(created), facts)
        place = resources.CHILDREN["ConfigMap"].path("default", kept["metadata"]["name"])
        _sent(
            client.patch(
                place,
                params={"fieldManager": FIELD_MANAGER},
                content=json.dumps(kept),
                headers={"Content-Type": "application/apply-patch+yaml"},
            )
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(create, range(number)))


def _sent(answer: httpx.Response) -> dict[str, Any]:
    answer.raise_for_status()
    body: dict[str, Any] = answer.json()
    return body


@contextmanager
def _operator(role: Path, log: Path) -> Iterator[str]:
    """The operator as a process; the URL of its liveness probe."""
    port = free_port("127.0.0.1")
    environment = {
        "PATH": os.environ["PATH"],
        "KUBECONFIG": str(role),
        "TURBO_RUNTIME_IMAGE": "registry.test/turbo-runtime:1",
        "TURBO_APPLY_CATALOG": "false",
        "TURBO_HEALTH_PORT": str(port),
        "TURBO_METRICS_PORT": str(free_port("127.0.0.1")),
    }
    with log.open("wb") as output:
        command = [str(Path(sys.executable).with_name("turbo")), "operator"]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield f"http://127.0.0.1:{port}/healthz"
        if process.poll() is not None:
            raise RuntimeError(f"the operator ended: {log.read_text(encoding='utf-8')[-2000:]}")
    finally:
        process.kill()
        process.wait()


class _Probe(threading.Thread):
    """Asks for liveness ten times a second, from the first answer on, as the kubelet would after start-up."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._ended = threading.Event()
        self._waited: list[float] = []
        self.start()

    def run(self) -> None:
        with httpx.Client(timeout=PATIENCE, trust_env=False) as client:
            while not self._ended.wait(0.1):
                began = time.monotonic()
                try:
                    client.get(self._url).raise_for_status()
                except httpx.HTTPError:
                    if self._waited:  # before the first answer it only starts
                        self._waited.append(PATIENCE)
                    continue
                self._waited.append(time.monotonic() - began)

    def stop(self) -> list[float]:
        """Seconds that each answer took."""
        self._ended.set()
        self.join()
        return self._waited


def _planned(client: httpx.Client, number: int, began: float) -> Iterator[float]:
    """Seconds after `began` at which each TurboDeployment first had an accelerator in its status."""
    path = resources.TURBODEPLOYMENT.path("default")
    query = {"watch": "1", "timeoutSeconds": str(int(PATIENCE))}
    seen: set[str] = set()
    with client.stream("GET", path, params=query, timeout=PATIENCE + 10) as events:
        for line in events.iter_lines():
            body = json.loads(line)["object"]
            name = body["metadata"]["name"]
            if name not in seen and body.get("status", {}).get("plan", {}).get("accelerator"):
                seen.add(name)
                yield time.monotonic() - began
            if len(seen) == number:
                return


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
