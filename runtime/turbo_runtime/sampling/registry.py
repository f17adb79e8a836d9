"""The samplers of live requests."""

from __future__ import annotations

import logging
from concurrent.futures import FIRST_COMPLETED, Future, wait

from llguidance import LLMatcher

from turbo_runtime.messages import GenerationRequest
from turbo_runtime.sampling.grammar.compiler import GrammarError
from turbo_runtime.sampling.grammar.matcher import GrammarMatcher, Grammars
from turbo_runtime.sampling.noise import Noise, answer_key
from turbo_runtime.sampling.sampler import Sampler

log = logging.getLogger(__name__)


class SamplerRegistry:
    """Samplers by request; a request under a grammar waits until that is compiled."""

    def __init__(self, noise: Noise, grammars: Grammars | None) -> None:
        """Without `grammars`, requests under a grammar are rejected."""
        self._noise = noise
        self._grammars = grammars
        self._samplers: dict[str, Sampler] = {}
        self._compiling: dict[str, tuple[GenerationRequest, Future[LLMatcher]]] = {}
        self._renewing: dict[str, Future[LLMatcher]] = {}

    def __getitem__(self, request_id: str) -> Sampler:
        return self._samplers[request_id]

    def __contains__(self, request_id: str) -> bool:
        """Whether that answer has its sampler or waits for it."""
        return request_id in self._samplers or request_id in self._compiling

    @property
    def compiling(self) -> bool:
        """Whether any answer waits for a grammar."""
        return bool(self._compiling or self._renewing)

    def begin(self, request: GenerationRequest) -> bool:
        """Return whether the sampler is built; else `compiled` tells later. Raises ValueError."""
        if request.params.grammar is None:
            self._samplers[request.request_id] = self._build(request, None)
            return True
        if self._grammars is None:
            raise GrammarError("this engine was started without a tokenizer, which a grammar needs")
        self._compiling[request.request_id] = request, self._grammars.compile(request.params.grammar)
        return False

    def again(self, request: GenerationRequest) -> Sampler | None:
        """Build the caller a fresh sampler for an ended answer; None if its grammar is no longer cached."""
        grammar = request.params.grammar
        if grammar is None:
            return self._build(request, None)
        if self._grammars is None or not self._grammars.has(grammar):
            return None
        return self._build(request, self._grammars.matcher(self._grammars.compile(grammar)))

    def compiled(self) -> list[tuple[GenerationRequest, ValueError | None]]:
        """Answers that waited and have their sampler now, or the reason why they get none."""
        outcomes: list[tuple[GenerationRequest, ValueError | None]] = []
        for name in [name for name, (_, compiling) in self._compiling.items() if compiling.done()]:
            request, compiling = self._compiling.pop(name)
            assert self._grammars is not None
            try:
                self._samplers[name] = self._build(request, self._grammars.matcher(compiling))
                outcomes.append((request, None))
            except ValueError as error:
                outcomes.append((request, error))
        return outcomes

    def wait(self, seconds: float) -> None:
        """Wait for a grammar, at most `seconds`."""
        futures = [compiling for _, compiling in self._compiling.values()]
        wait([*futures, *self._renewing.values()], seconds, FIRST_COMPLETED)

    def close(self) -> None:
        """Wait for no grammar any more."""
        if self._grammars is not None:
            self._grammars.close()

    def renew(self, request_id: str) -> None:
        """Compile the answer's spent grammar again for it alone; the answer waits."""
        grammar = self._samplers[request_id].params.grammar
        assert grammar is not None
        assert self._grammars is not None
        self._renewing[request_id] = self._grammars.compile_alone(grammar)

    def ready(self, request_id: str) -> bool:
        """Whether the answer can go on, which it does as soon as it can."""
        future = self._renewing.get(request_id)
        if future is None:
            return True
        if not future.done():
            return False
        del self._renewing[request_id]
        error = future.exception()
        if error is not None and not isinstance(error, GrammarError):
            log.error("a grammar that was compiled before was not again: %s", error)
        self._samplers[request_id].renew(None if error else future.result())
        return True

    def end(self, request_id: str) -> None:
        """Forget an answer that ended or never began."""
        self._compiling.pop(request_id, None)
        self._samplers.pop(request_id, None)
        self._renewing.pop(request_id, None)

    def _build(self, request: GenerationRequest, grammar: GrammarMatcher | None) -> Sampler:
        key = answer_key(request.params.seed, request.prompt, request.choice)
        return Sampler(request.params, request.prompt, key, self._noise, grammar)
