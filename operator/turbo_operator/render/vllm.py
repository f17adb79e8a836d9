"""The server of engine VLLM in a serving pod: its arguments from the plan. Pure.

Flags are those of vLLM 0.32: https://docs.vllm.ai/en/latest/configuration/engine_args.html
"""

from __future__ import annotations

import json
import math
from typing import Any

from turbo_operator import api, pod_scripts
from turbo_operator.plan import Choice
from turbo_operator.planner import OFF
from turbo_operator.planner.capabilities import engine_of, lora_rank
from turbo_operator.planner.performance.memory import on_cpu
from turbo_operator.render import draft_volume, pod
from turbo_operator.render.metadata import configmap
from turbo_operator.render.server import KEYS_PATH, Amounts, EngineServer, api_keys, shared_memory
from turbo_operator.settings import Settings
from turbo_operator.snapshot import DraftView
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.contract.documents import ModelInfo
from turbo_runtime.contract.endpoints import HEALTH_PATH, METRICS_PATH, PORT

COMMAND = ("vllm", "serve")
FOLDER = "/etc/turbo-vllm"
FILE = "turbo_vllm.py"
MIDDLEWARE = "turbo_vllm.TurboMiddleware"
RENDEZVOUS_PORT = 29501  # where the leader of a replica on several nodes waits for its workers
GRACE_SLACK_SECONDS = 30  # for its processes to end
N_GRAM_TOKENS = (2, 4)  # minimum and maximum length of the n-gram that is looked up


def server(
    td: api.TurboDeployment,
    choice: Choice,
    facts: ModelInfo,
    amounts: Amounts,
    settings: Settings,
    draft: DraftView | None = None,
) -> EngineServer:
    """Build vLLM's OpenAI server, with a `draft` that was trained for the model."""
    delay = RuntimeConfig(model="").shutdown_delay_seconds
    environment = {
        "USER": "vllm",  # the image need not know the user that it runs as, and torch asks for its name
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": FOLDER,  # of the middleware
    }
    if api_keys(td):
        environment["TURBO_API_KEY_FILE"] = KEYS_PATH
    if on_cpu(choice.accelerator):
        # One thread on each core of the limit, wherever they are: it would bind to all that the node has.
        cores = max(1, int(api.quantity(amounts["limits"]["cpu"])))
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(cores)}
    page, timeout = f"http://127.0.0.1:{PORT}{METRICS_PATH}", td.spec.drain.timeout.seconds
    drain = ["python3", f"{FOLDER}/{FILE}", page, f"{delay:g}", f"{timeout:g}"]
    leader_page = f"http://$LWS_LEADER_ADDRESS:{PORT}{METRICS_PATH}"
    return EngineServer(
        image=td.spec.engine.image or settings.vllm_image,
        command=COMMAND,
        arguments=arguments(td, choice, facts, draft),
        ready_path=HEALTH_PATH,  # it listens once the model is loaded
        grace_seconds=delay + timeout + GRACE_SLACK_SECONDS,
        environment=[{"name": name, "value": value} for name, value in environment.items()],
        lifecycle={"preStop": {"exec": {"command": drain}}},
        worker_arguments=arguments(td, choice, facts, draft, is_worker=True),
        # A worker answers through its leader: it stays for as long as that has requests to end.
        worker_lifecycle={"preStop": {"exec": {"command": [*drain[:2], leader_page, *drain[3:]]}}},
        volumes=[
            shared_memory(),
            pod.mounted_volume("drain", {"configMap": {"name": configmap_name(td)}}, FOLDER, read_only=True),
        ],
        draft=pod.draft_model(td, choice),
        downloads={
            f"adapter-{number}": _download(td, adapter, facts)
            for number, adapter in enumerate(pod.sorted_adapters(td))
            if adapter.on_hub and not pod.is_fetched(td)
        },
    )


def configmap_name(td: api.TurboDeployment) -> str:
    """`NAME-vllm`."""
    return f"{td.metadata.name}-vllm"


def configmaps(td: api.TurboDeployment, choice: Choice | None) -> list[dict[str, Any]]:
    """Build the file that pods of vLLM drain by; none where the plan is of another engine."""
    if choice is None or choice.engine != api.EngineName.VLLM:
        return []
    return [configmap(td, configmap_name(td), {FILE: pod_scripts.read(FILE)})]


def identity(td: api.TurboDeployment, choice: Choice, facts: ModelInfo) -> list[str]:
    """Return what tells the servers of two plans apart: what was asked for and planned, and neither the words
    of this version, by which an upgrade would replace every pod, nor the drafts by requests under way, which
    are renewed with the next rollout. The user's own flags are asked for.
    """
    source = pod.draft_model(td, choice)
    parts = (
        facts.revision or td.spec.model.revision,
        td.served_name,
        choice.dtype,
        choice.max_model_len,
        choice.kv_cache_bytes,
        choice.tensor,
        *([choice.nodes] if choice.nodes > 1 else []),
        *([f"data {choice.data}"] if choice.data > 1 else []),
        *(["expert"] if _is_expert(td) else []),
        td.spec.drain.timeout,
        choice.method,
        choice.max_draft_tokens,
        source.uri if source is not None else None,
        *(td.spec.engine.args or ()),
        *_adapters(td, facts),
    )
    return [str(part) for part in parts]


def _adapters(td: api.TurboDeployment, facts: ModelInfo) -> list[str]:
    """Return which adapters there are, and what of them decides on their slots."""
    adapters = pod.sorted_adapters(td)
    named = [f"adapter {it.name} {it.uri} {pod.adapter_commit(it, facts)}" for it in adapters]
    slots = [f"rank {_rank(facts)}", *(facts.adapter_modules if facts.shape.experts else ())]
    return [*named, *slots] if adapters else []


def arguments(
    td: api.TurboDeployment,
    choice: Choice,
    facts: ModelInfo,
    draft: DraftView | None = None,
    *,
    is_worker: bool = False,
) -> list[str]:
    """Return the server's arguments: the user's own, and after them, so that they win, the plan's."""
    limits = engine_of(choice.engine).on_gpus
    model, revision = pod.served_model(td, facts)
    planned: dict[str, Any] = {
        "revision": revision,
        "served-model-name": td.served_name,
        "port": PORT,
        "dtype": choice.dtype,
        "max-model-len": choice.max_model_len,
        "max-num-seqs": limits.max_num_seqs,
        "max-num-batched-tokens": limits.max_num_batched_tokens,
        "kv-cache-memory-bytes": choice.kv_cache_bytes,
        "tensor-parallel-size": choice.tensor if choice.tensor > 1 else None,
        "data-parallel-size": choice.data if choice.data > 1 else None,
        **(_group(choice, is_worker) if choice.nodes > 1 else {}),
        "middleware": MIDDLEWARE,
        "shutdown-timeout": math.ceil(td.spec.drain.timeout.seconds),
        "speculative-config": _speculative_config(td, choice, draft),
    }
    own = [f"--{name}={value}" for name, value in planned.items() if value is not None]
    own += ["--enable-expert-parallel"] if _is_expert(td) else []
    own += ["--headless"] if is_worker else []
    own += _lora(td, facts)
    return [model, *(td.spec.engine.args or ()), *own]


def _is_expert(td: api.TurboDeployment) -> bool:
    """Whether whole experts are spread over the accelerators of a replica, rather than slices of each."""
    return bool(td.spec.parallelism and td.spec.parallelism.expert)


def _group(choice: Choice, is_worker: bool) -> dict[str, Any]:
    """Return how the pods of a replica on several nodes find one another; LeaderWorkerSet sets LWS_*."""
    return {
        "pipeline-parallel-size": choice.nodes,
        "nnodes": choice.nodes,
        "node-rank": "$(LWS_WORKER_INDEX)" if is_worker else 0,
        "master-addr": "$(LWS_LEADER_ADDRESS)",
        "master-port": RENDEZVOUS_PORT,
    }


def _lora(td: api.TurboDeployment, facts: ModelInfo) -> list[str]:
    """Return the arguments about adapters; none without any. All of them have a slot in memory at once."""
    adapters = pod.sorted_adapters(td)
    if not adapters:
        return []
    modules = [json.dumps({"name": it.name, "path": pod.adapter_path(td, it, facts)}) for it in adapters]
    flags = ["--enable-lora", f"--max-loras={len(adapters)}", f"--max-lora-rank={_rank(facts)}"]
    if facts.shape.experts:  # else every routed expert would have slots in memory
        flags += ["--lora-target-modules", *facts.adapter_modules]
    return [*flags, "--lora-modules", *modules]


def _rank(facts: ModelInfo) -> int:
    """Return the rank of the slots."""
    return lora_rank(max((adapter.rank for adapter in facts.adapters), default=1))


def _download(td: api.TurboDeployment, adapter: api.Adapter, facts: ModelInfo) -> list[str]:
    """Return the command that brings an adapter of the hub: vLLM itself would take none but the latest."""
    revision, path = pod.adapter_commit(adapter, facts), pod.adapter_path(td, adapter, facts)
    return ["hf", "download", adapter.hub_id, f"--revision={revision}", f"--local-dir={path}"]


def _speculative_config(td: api.TurboDeployment, choice: Choice, draft: DraftView | None) -> str | None:
    """Return --speculative-config as JSON; None without speculation."""
    source, trained = pod.draft_model(td, choice), draft_volume.loaded_by_vllm(td, draft, choice)
    if choice.method == OFF or (choice.method in pod.WITH_A_MODEL and source is None and trained is None):
        return None
    most = max((tokens for _, _, tokens in choice.draft_schedule), default=choice.max_draft_tokens)
    config: dict[str, Any] = {"num_speculative_tokens": max(1, most)}
    if choice.draft_schedule and choice.data == 1:
        # With many requests fewer drafts, and none where they would cost time.
        config["num_speculative_tokens_per_batch_size"] = choice.draft_schedule
    match choice.method:
        case api.Method.SUFFIX:
            config["method"] = "suffix"
        case api.Method.N_GRAM:
            low, high = N_GRAM_TOKENS
            config |= {"method": "ngram", "prompt_lookup_min": low, "prompt_lookup_max": high}
        case api.Method.MTP:
            config["method"] = "mtp"
        case api.Method.EAGLE3 | api.Method.DRAFT_MODEL:
            config["method"] = "eagle3" if choice.method == api.Method.EAGLE3 else "draft_model"
            if source is not None:
                config["model"] = pod.model_argument(source, pod.DRAFT_MODEL_PATH)
            elif trained is not None:
                config["model"] = draft_volume.folder_of(trained)
    return json.dumps(config, sort_keys=True)
