"""What the routes share: the engine, the model once loaded, and whether requests are taken."""

from __future__ import annotations

import asyncio
import time
from enum import Enum
from pathlib import Path

from turbo_runtime.contract import Load, RuntimeConfig
from turbo_runtime.server.admission import Admission, Limits
from turbo_runtime.server.answers import Answers
from turbo_runtime.server.engine_link import EngineLink
from turbo_runtime.server.errors import invalid, overloaded, still_loading, unauthorized, unavailable
from turbo_runtime.server.jobs import Job
from turbo_runtime.server.keys import ApiKeys
from turbo_runtime.server.metrics import Metrics
from turbo_runtime.server.model import ServedModel, served_name
from turbo_runtime.server.queueing import DrainRate
from turbo_runtime.server.tokenizer import ServedTokenizer


class Phase(Enum):
    """The life of the server, in this order."""

    LOADING = "loading the model"
    SERVING = "serving"
    LEAVING = "draining: still taking requests while load balancers take the pod out"
    CLOSED = "draining: finishing what runs"


class Service:
    """State of one server process; used on its event loop only."""

    def __init__(self, config: RuntimeConfig, engine: EngineLink, keys: ApiKeys | None = None) -> None:
        self.config = config
        self.engine = engine
        self._keys = keys
        self._admission = self._door(0)
        self.empty = asyncio.Event()  # nobody waits for an answer
        self.empty.set()
        self._drain_rate = DrainRate()
        self.name = served_name(config.model, config.served_name)
        self.metrics = Metrics(self.name)
        self.phase = Phase.LOADING
        self.tokenising = asyncio.Semaphore(2)  # long prompts at a time: each holds many times its size
        self._model: ServedModel | None = None
        engine.on_step = self.metrics.follow

    async def load(self, tokenizer_dir: Path) -> ServedModel:
        """Wait for the engine and take up its model; returns when requests can be served."""
        facts = await asyncio.shield(self.engine.ready)
        tokenizer = await asyncio.to_thread(ServedTokenizer, tokenizer_dir)
        self._model = ServedModel(self.name, facts, tokenizer)
        self._admission = self._door(self._model.kv_tokens)  # nobody was let in through the other
        self.metrics.announce(facts.guarantee)
        if self.phase is Phase.LOADING:
            self.phase = Phase.SERVING
        return self._model

    def _door(self, kv_tokens: int) -> Admission:
        """What runs has its places and its tokens beside those that may wait. So the limit of tokens is above
        the longest prompt, and turns none away for good.
        """
        config = self.config
        return Admission(
            Limits(config.max_running + config.max_waiting, kv_tokens + config.max_waiting_tokens)
        )

    @property
    def admitted(self) -> int:
        """Answers whose client has not got all of them yet, computed or not."""
        return self._admission.answers

    @property
    def loaded(self) -> ServedModel | None:
        """The model, whether or not requests are taken; None before it is loaded."""
        return self._model

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send requests here."""
        return self.phase is Phase.SERVING and self.engine.alive

    @property
    def draining(self) -> bool:
        """Whether the server is on its way out."""
        return self.phase in (Phase.LEAVING, Phase.CLOSED)

    def open_model(self) -> ServedModel:
        """The model, for a new request. Raises ApiError (503) before it is loaded, once the server is
        closed, and without an engine.
        """
        if not self.engine.alive:
            raise unavailable(self.engine.ended.result())
        if self.phase is Phase.CLOSED:
            raise unavailable(
                "This server is shutting down and takes no new requests; send it again to reach another."
            )
        if self._model is None:
            raise still_loading(self.name)
        return self._model

    def answers(self, job: Job, model: ServedModel) -> Answers:
        """Admit a job and hand it to the engine.

        Raises ApiError: 429 when the queue is full and the tenant has its share of it, 400 when the job could
        never fit, 503 as `open_model`.
        """
        self.open_model()  # the phase may have changed while the prompt was tokenised
        answers, tokens = job.choices, job.prompt_tokens * job.n
        door = self._admission
        for wanted, limit, what in (
            (answers, door.limits.answers, "answers"),
            (tokens, door.limits.tokens, "prompt tokens, each answer's counted"),
        ):
            if wanted > limit:
                raise invalid(
                    "n" if job.n > 1 else "prompt",
                    f"The request asks for {wanted} {what}, and this server takes in at most {limit} "
                    "at once: send several requests.",
                )
        refusal = door.refusal(job.tenant, answers, tokens)
        if refusal is not None:
            seconds = self._drain_rate.seconds_until(refusal.places, time.monotonic())
            raise overloaded(f"{refusal.sentence} Retry after {seconds} s.", seconds)
        door.enter(job.tenant, answers, tokens)
        self.empty.clear()

        def left() -> None:
            door.leave(job.tenant, answers, tokens)
            if not door.answers:
                self.empty.set()
            for _ in range(answers):
                self._drain_rate.left(time.monotonic())

        return Answers(job, model, self.engine, self.metrics, self.config.request_seconds, left)

    def tenant(self, authorization: str | None) -> str:
        """Whom a request is from, by its `Authorization` header; empty where no keys are asked for.

        Raises ApiError (401) for a key that is none of ours.
        """
        if self._keys is None:
            return ""
        tenant = self._keys.tenant(authorization)
        if tenant is None:
            sent = "The API key is not one of this server's" if authorization else "There is no API key"
            raise unauthorized(f"{sent}: send one of its keys as 'Authorization: Bearer KEY'.")
        return tenant

    def load_now(self) -> Load | None:
        """The body of `/load`; None before the model is loaded."""
        model = self._model
        if model is None:
            return None
        stats, outstanding = self.engine.stats, self.engine.outstanding
        # The engine is silent while idle and its last word may name requests that were cancelled since; those
        # that it has not seen yet wait.
        running = min(stats.running_requests, outstanding)
        return Load(
            running_requests=running,
            waiting_requests=outstanding - running,
            running_tokens=stats.running_tokens if running else 0,
            waiting_tokens=stats.waiting_tokens if outstanding > running else 0,
            kv_cache_usage=stats.kv_blocks_used / model.facts.kv_blocks if running else 0.0,
            kv_cache_tokens=model.kv_tokens,
            drafts=stats.drafts,
            draft_tokens=stats.draft_tokens,
            accepted_tokens=stats.accepted_tokens,
            generated_tokens=stats.generated_tokens,
            guarantee=model.facts.guarantee,
            draining=self.draining,
            max_running=self.config.max_running,
            prompts=stats.prompts,
            prompt_tokens=stats.prompt_tokens,
            step_times=model.facts.step_times,
            speedup=stats.speedup,
        )
