"""What the routes share: the engine, the model once loaded, and whether requests are taken."""

from __future__ import annotations

import asyncio
from enum import Enum
from pathlib import Path

from turbo_runtime.capture.recorder import Capture
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.contract.load import Load
from turbo_runtime.protocol.errors import still_loading, unauthorized, unavailable
from turbo_runtime.server.admission.policy import Limits
from turbo_runtime.server.admission.slots import AdmissionSlot, AdmissionSlots
from turbo_runtime.server.api_keys import ApiKeys
from turbo_runtime.server.engine_client.client import EngineClient
from turbo_runtime.server.metrics import Metrics
from turbo_runtime.server.preprocessing import PreparedRequest
from turbo_runtime.server.responses.request_output import RequestOutput
from turbo_runtime.server.served_model import ServedModel, served_name
from turbo_runtime.server.thread_offload import ThreadOffload
from turbo_runtime.tokenization.tokenizer import ServedTokenizer


class Phase(Enum):
    """The life of the server, in this order."""

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
        self._keys = keys
        self.places = self._places(0)
        self.name = served_name(config.model, config.served_name)
        self.metrics = Metrics(self.name)
        self.phase = Phase.LOADING
        self.preparing = ThreadOffload(2)  # long prompts; each holds many times its size
        self.writing = ThreadOffload(2)  # replies with logprobs
        self.cut: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # why nobody is served on
        self._model: ServedModel | None = None
        engine.on_step = self.metrics.follow

    async def load(self, tokenizer_dir: Path) -> ServedModel:
        """Wait for the engine and take up its model; returns when requests can be served."""
        facts = await asyncio.shield(self.engine.ready)
        tokenizer = await self.preparing.run(lambda _: ServedTokenizer(tokenizer_dir))
        self._model = ServedModel(self.name, facts, tokenizer)
        self.places = self._places(self._model.kv_tokens)  # nobody was let in through the other
        self.metrics.announce(facts.guarantee)
        if self.phase is Phase.LOADING:
            self.phase = Phase.SERVING
        return self._model

    def _places(self, kv_tokens: int) -> AdmissionSlots:
        """What runs has its places and its tokens beside those that may wait. So the limit of tokens is above
        the longest prompt, and turns none away for good.
        """
        config = self.config
        return AdmissionSlots(
            Limits(config.max_running + config.max_waiting, kv_tokens + config.max_waiting_tokens)
        )

    @property
    def admitted(self) -> int:
        """Answers whose client has not got all of them yet, computed or not."""
        return self.places.answers

    def cut_short(self, sentence: str) -> None:
        """End everything that was let in with an error: prepared, waiting or running."""
        if not self.cut.done():
            self.cut.set_result(sentence)
        self.engine.fail_all(sentence)

    @property
    def loaded(self) -> ServedModel | None:
        """The model, whether or not requests are taken; None before it is loaded."""
        return self._model

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send requests here."""
        return self.phase is Phase.SERVING and self.engine.alive and not self.engine.late

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

    def answers(self, job: PreparedRequest, model: ServedModel, place: AdmissionSlot) -> RequestOutput:
        """Hand a job that has a place to the engine.

        Raises ApiError: 429 or 400 where its tokens do not fit in, 503 as `open_model`.
        """
        if not self.engine.alive:  # it may have ended while the prompt was tokenised
            raise unavailable(self.engine.ended.result())
        place.settle(job.prompt_tokens * job.n)
        return RequestOutput(
            job,
            model,
            self.engine,
            self.metrics,
            self.config.request_seconds,
            lambda: place.leave(answered=True),
        )

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
            kv_cache_usage=stats.kv_blocks_used / model.facts.kv_blocks,
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
            answering_seconds=stats.answering_seconds,
            plain_answering_seconds=stats.plain_answering_seconds,
            audits=stats.audits,
            audit_mismatches=stats.audit_mismatches,
            draft_version=stats.draft_version,
            draft_problem=stats.draft_problem,
            captured=self.capture.outcomes["kept"] if self.capture else None,
        )
