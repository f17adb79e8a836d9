"""The samplers of live answers. An answer under a grammar waits until the grammar is compiled."""

from __future__ import annotations

import logging
from concurrent.futures import FIRST_COMPLETED, Future, wait

from llguidance import LLMatcher

from turbo_runtime.messages import GenerationRequest
from turbo_runtime.sampling.grammar.compiler import GrammarError
from turbo_runtime.sampling.grammar.matcher import Compiling, GrammarMatcher, Grammars
from turbo_runtime.sampling.noise import Noise, answer_key
from turbo_runtime.sampling.sampler import Sampler

log = logging.getLogger(__name__)


class SamplerRegistry:
    """Builds a sampler for each answer and keeps it while the answer lives."""

    def __init__(self, noise: Noise, grammars: Grammars | None) -> None:
        """Without `grammars`, answers under a grammar are rejected."""
        self._noise = noise
        self._grammars = grammars
        self._samplers: dict[str, Sampler] = {}
        self._compiling: dict[str, tuple[GenerationRequest, Compiling]] = {}
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

    def begin(self, submit: GenerationRequest) -> bool:
        """Whether the answer has its sampler now; else `compiled` gives it. Raises ValueError with a
        sentence.
        """
        if submit.params.grammar is None:
            self._samplers[submit.request_id] = self._build(submit, None)
            return True
        if self._grammars is None:
            raise GrammarError("this engine was started without a tokenizer, which a grammar needs")
        self._compiling[submit.request_id] = submit, self._grammars.compile(submit.params.grammar)
        return False

    def again(self, submit: GenerationRequest) -> Sampler | None:
        """Build the caller a fresh sampler for an ended answer; None if its grammar is no longer cached."""
        grammar = submit.params.grammar
        if grammar is None:
            return self._build(submit, None)
        if self._grammars is None or not self._grammars.has(grammar):
            return None
        return self._build(submit, self._grammars.compile(grammar).matcher())

    def compiled(self) -> list[tuple[GenerationRequest, ValueError | None]]:
        """Answers that waited and have their sampler now, or the reason why they get none."""
        outcomes: list[tuple[GenerationRequest, ValueError | None]] = []
        for name in [name for name, (_, compiling) in self._compiling.items() if compiling.future.done()]:
            submit, compiling = self._compiling.pop(name)
            try:
                self._samplers[name] = self._build(submit, compiling.matcher())
                outcomes.append((submit, None))
            except ValueError as error:
                outcomes.append((submit, error))
        return outcomes

    def wait(self, seconds: float) -> None:
        """Wait for a grammar, at most `seconds`."""
        futures = [compiling.future for _, compiling in self._compiling.values()]
        wait([*futures, *self._renewing.values()], seconds, FIRST_COMPLETED)

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

    def _build(self, submit: GenerationRequest, grammar: GrammarMatcher | None) -> Sampler:
        key = answer_key(submit.params.seed, submit.prompt, submit.choice)
        return Sampler(submit.params, submit.prompt, key, self._noise, grammar)
