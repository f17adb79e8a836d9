"""State that the routes share: the engine, the model once loaded, and whether requests are taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from turbo_runtime.capture.recorder import Capture
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.contract.documents import Load
from turbo_runtime.contract.endpoints import MAX_BODY_BYTES
from turbo_runtime.messages import EngineStats
from turbo_runtime.protocol.errors import ApiError, cut, unavailable
from turbo_runtime.server.admission import AdmissionSlots, Amount, ApiKeys, HeldBytes
from turbo_runtime.server.engine_client import EngineClient
from turbo_runtime.server.metrics import Metrics
from turbo_runtime.server.preprocessing import IsWanted, ServedModel
from turbo_runtime.tokenization.tokenizer import ServedTokenizer

Result = TypeVar("Result")
# Counters that `/load` passes on
_STATS = {field.name for field in fields(Load)} & {field.name for field in fields(EngineStats)}
BODIES_BYTES = 16 * MAX_BODY_BYTES  # together, until their prompts are tokens; each is then many times that
_unfinished: set[Future[Any]] = set()


def has_running_threads() -> bool:
    """Return whether work still runs, if only for clients that left: it cannot be interrupted."""
    return bool(_unfinished)


class ThreadOffload:
    """Limited number of threads: each work holds many times its text's size in memory."""

    def __init__(self, num_threads: int) -> None:
        self._executor = ThreadPoolExecutor(num_threads, "thread offload")

    async def run(self, work: Callable[[IsWanted], Result]) -> Result:
        """Return what `work` returns, or raise what it raises. It holds its thread until it ends."""
        wanted = True
        future = self._executor.submit(work, lambda: wanted)
        _unfinished.add(future)
        future.add_done_callback(_unfinished.discard)
        try:
            return await asyncio.wrap_future(future)
        finally:
            wanted = False


class Phase(Enum):
    """Phases of the server, in this order."""

    LOADING = "loading the model"
    SERVING = "serving"
    LEAVING = "draining: still taking requests while load balancers take the pod out"
    CLOSED = "draining: finishing what runs"


class Service:
    """State of one server process; used on its event loop only."""

    def __init__(
        self,
        config: RuntimeConfig,
        engine: EngineClient,
        keys: ApiKeys | None = None,
        capture: Capture | None = None,
    ) -> None:
        self.config = config
        self.capture = capture
        self.engine = engine
        self.model: ServedModel | None = None  # None while it loads
        self._keys = keys
        self.slots = self._build_slots(0, 0)
        self.bodies = HeldBytes(BODIES_BYTES)
        self.name = config.api_name
        self.names = (self.name, *config.adapters)  # an adapter's place is its number
        self.metrics = Metrics(self.name)
        self.phase = Phase.LOADING
        self.preprocessing = ThreadOffload(2)  # long prompts; each holds many times its size
        self.postprocessing = ThreadOffload(2)  # replies with logprobs
        # set with a message when everything admitted ends with an error
        self.cut: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        engine.on_step = self.metrics.update

    async def load(self, tokenizer_dir: Path) -> ServedModel:
        """Wait for the engine and load the tokenizer; returns when requests can be served."""
        info = await asyncio.shield(self.engine.ready)
        tokenizer = await self.preprocessing.run(lambda _: ServedTokenizer(tokenizer_dir))
        self.model = ServedModel(self.name, info, tokenizer)
        self.slots = self._build_slots(
            info.max_num_seqs, self.model.kv_tokens
        )  # nobody has a slot of the old ones
        if self.phase is Phase.LOADING:
            self.phase = Phase.SERVING
        return self.model

    def _build_slots(self, max_num_seqs: int, kv_tokens: int) -> AdmissionSlots:
        """Running requests count, too, so the limit of tokens is above the longest prompt that fits."""
        num_outputs = max_num_seqs + self.config.max_queued_requests
        return AdmissionSlots(Amount(num_outputs, kv_tokens + self.config.max_queued_prompt_tokens))

    def cut_short(self, message: str) -> None:
        """End everything admitted with an error, whether it is prepared, waiting or running."""
        if not self.cut.done():
            self.cut.set_result(message)
        self.engine.fail_all(message)

    @property
    def is_draining(self) -> bool:
        """Whether the server is on its way out."""
        return self.phase in (Phase.LEAVING, Phase.CLOSED)

    def require_model(self) -> ServedModel:
        """Return the model for a new request. Raises ApiError (503) where none is served."""
        self.require_engine()
        if self.phase is Phase.CLOSED:
            raise unavailable(
                "This server is shutting down and takes no new requests; send it again to reach another."
            )
        return self.require_loaded()

    def require_engine(self) -> None:
        """Raise ApiError (503) without an engine."""
        if not self.engine.is_alive:
            raise unavailable(self.engine.ended.result())

    def require_loaded(self) -> ServedModel:
        """Return the model. Raises ApiError (503) while it loads."""
        if self.model is None:
            raise unavailable(f"The model '{self.name}' is still loading.", retry_after=5)
        return self.model

    def find_adapter(self, name: str) -> int:
        """Return the number of the adapter of that name; 0 of the model itself. Raises ApiError (404) for
        the name of another model.
        """
        if name not in self.names:
            known = ", ".join(f"'{each}'" for each in self.names)
            message = f"The model '{cut(name)}' does not exist; this server has {known}."
            raise ApiError(404, message, code="model_not_found", param="model")
        return self.names.index(name)

    def authenticate(self, authorization: str | None) -> str:
        """Return the tenant of an `Authorization` header; empty without keys. Raises ApiError (401)."""
        if self._keys is None:
            return ""
        tenant = self._keys.find_tenant(authorization)
        if tenant is None:
            problem = "The API key is not one of this server's" if authorization else "There is no API key"
            message = f"{problem}: send one of its keys as 'Authorization: Bearer KEY'."
            raise ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})
        return tenant

    def build_load(self) -> Load:
        """Return the body of `/load`. Raises ApiError (503) while the model loads."""
        model = self.require_loaded()
        stats, unfinished = self.engine.stats, len(self.engine.unfinished)
        # An idle engine is silent, and its last message may count requests that were cancelled later; those
        # that it has not seen yet wait.
        running = min(stats.running_requests, unfinished)
        own = {
            "running_requests": running,
            "waiting_requests": unfinished - running,
            "running_tokens": stats.running_tokens if running else 0,
            "waiting_tokens": stats.waiting_tokens if unfinished > running else 0,
            "kv_cache_usage": stats.kv_blocks_used / model.info.kv_blocks,
            "kv_cache_tokens": model.kv_tokens,
            "guarantee": model.info.guarantee,
            "draining": self.is_draining,
            "max_num_seqs": model.info.max_num_seqs,
            "finished_requests": self.metrics.finished_requests,
            "failed_requests": self.metrics.failed_requests,
            "step_times": model.info.step_times,
            "load_seconds": round(model.info.load_seconds, 3),
            "check_seconds": round(model.info.check_seconds + model.info.measure_seconds, 3),
            "first_token_time": self.metrics.first_token_time,
            "time_to_first_token": self.metrics.time_to_first_token.histogram(),
            "time_per_output_token": self.metrics.time_per_output_token.histogram(),
            "captured": self.capture.outcomes["kept"] if self.capture else None,
        }
        return Load(**{name: getattr(stats, name) for name in _STATS} | own)
