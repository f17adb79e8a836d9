"""The server of engine Turbo in a serving pod. Pure."""

from __future__ import annotations

import dataclasses

from turbo_operator import api
from turbo_operator.plan import Choice
from turbo_operator.planner import OFF
from turbo_operator.planner.performance.memory import GIB, on_cpu
from turbo_operator.render import draft_volume, pod
from turbo_operator.render.server import (
    CAPTURE_FILE,
    CAPTURE_FOLDER,
    KEYS_PATH,
    Amounts,
    EngineServer,
    api_keys,
    capture,
    shared_memory,
)
from turbo_operator.settings import Settings
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.contract.documents import ModelInfo
from turbo_runtime.contract.endpoints import READY_PATH

GRACE_SLACK_SECONDS = 10  # the engine's last step and the processes' ends
CANARY_AUDIT_FRACTION = 0.1  # of its answers: the default finds too little in minutes


def server(
    td: api.TurboDeployment,
    choice: Choice,
    facts: ModelInfo,
    amounts: Amounts,
    settings: Settings,
    claim: str | None,
    *,
    canary: bool,
) -> EngineServer:
    """Build `turbo serve`; `claim` holds its drafts."""
    config = runtime_config(td, choice, facts, amounts, claim)
    if canary:
        config = dataclasses.replace(config, audit_fraction=CANARY_AUDIT_FRACTION)
    return EngineServer(
        image=pod.runtime_image(td, settings),
        command=["turbo", "serve"],
        arguments=config.to_argv(),
        ready_path=READY_PATH,
        grace_seconds=config.drain_timeout_seconds + config.shutdown_delay_seconds + GRACE_SLACK_SECONDS,
        volumes=[shared_memory()] if choice.tensor > 1 else [],
        draft=pod.draft_model(td, choice),
    )


def _adapter(td: api.TurboDeployment, adapter: api.Adapter, facts: ModelInfo) -> str:
    """Return where the server finds an adapter; it downloads what is not fetched before."""
    if pod.is_fetched(td):
        return pod.adapter_path(td, adapter, facts)
    return pod.adapter_argument(adapter, pod.adapter_commit(adapter, facts))


def runtime_config(
    td: api.TurboDeployment, choice: Choice, facts: ModelInfo, amounts: Amounts, claim: str | None = None
) -> RuntimeConfig:
    """Return what `turbo serve` gets: one commit, arithmetic and threads for all, hence the same bytes."""
    cpu, draft = on_cpu(choice.accelerator), pod.draft_model(td, choice)
    timeout = td.spec.engine.step_timeout
    model, revision = pod.served_model(td, facts)
    config = RuntimeConfig(
        model=model,
        revision=revision,
        served_model_name=td.served_name,
        device="cpu" if cpu else "cuda",
        dtype=choice.dtype,
        # All that the container may use, since a process cannot see its quota; of a node with devices, what a
        # draft on cores is given.
        threads=max(1, int(api.quantity(amounts["limits"]["cpu"]))) if cpu else choice.draft_cores or None,
        tensor_parallel_size=choice.tensor,
        lora_modules=tuple(f"{it.name}={_adapter(td, it, facts)}" for it in pod.sorted_adapters(td)),
        max_model_len=choice.max_model_len,
        kv_cache_gib=choice.kv_cache_bytes / GIB,
        # Beside a draft model the others draft too, at each position whichever is the most confident.
        speculation="off" if choice.method == OFF else "auto" if draft else "suffix",
        draft_model=pod.model_argument(draft, pod.DRAFT_MODEL_PATH) if draft else None,
        draft_device=_draft_device(choice) if draft else None,
        draft_config=f"{draft_volume.FOLDER}/{draft_volume.FILE}" if claim else None,
        max_draft_tokens=choice.max_draft_tokens,
        drain_timeout_seconds=td.spec.drain.timeout.seconds,
        api_key_file=KEYS_PATH if api_keys(td) else None,
        capture_config=f"{CAPTURE_FOLDER}/{CAPTURE_FILE}" if capture(td) else None,
    )
    return config if timeout is None else dataclasses.replace(config, step_timeout_seconds=timeout.seconds)


def _draft_device(choice: Choice) -> str | None:
    """Return the device of a draft model; None for the model's own."""
    if choice.placement == api.Placement.SEPARATE:
        return f"cuda:{choice.tensor}"  # behind those that share the model
    return "cpu" if choice.placement == api.Placement.CPU else None
