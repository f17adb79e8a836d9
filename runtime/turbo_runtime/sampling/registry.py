"""The laws of the answers in the engine. An answer under a grammar is held back until that is compiled."""

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
    """Makes a law for each answer, keeps it while the answer lives; grammars compile on another thread."""

    def __init__(self, noise: Noise, grammars: Grammars | None) -> None:
        """Without `grammars`, answers that ask for one are refused."""
        self._noise = noise
        self._grammars = grammars
        self._laws: dict[str, Sampler] = {}
        self._compiling: dict[str, tuple[GenerationRequest, Compiling]] = {}
        self._renewing: dict[str, Future[LLMatcher]] = {}

    def __getitem__(self, request_id: str) -> Sampler:
        return self._laws[request_id]

    def __contains__(self, request_id: str) -> bool:
        """Whether that answer has its law or waits for it."""
        return request_id in self._laws or request_id in self._compiling

    @property
    def compiling(self) -> bool:
        """Whether any answer is held back."""
        return bool(self._compiling or self._renewing)

    def begin(self, submit: GenerationRequest) -> bool:
        """Whether the answer has its law now; False: it comes from `compiled` later. Raises ValueError with a
        sentence for parameters that cannot be served.
        """
        if submit.params.grammar is None:
            self._make(submit, None)
            return True
        if self._grammars is None:
            raise GrammarError("this engine was started without a tokenizer, which a grammar needs")
        self._compiling[submit.request_id] = submit, self._grammars.compile(submit.params.grammar)
        return False

    def again(self, submit: GenerationRequest) -> Sampler | None:
        """A law for an answer that ended, at its beginning, which is the caller's own; None where its grammar
        is no longer kept.
        """
        grammar = submit.params.grammar
        if grammar is None:
            return self._law(submit, None)
        if self._grammars is None or not self._grammars.has(grammar):
            return None
        return self._law(submit, self._grammars.compile(grammar).matcher())

    def compiled(self) -> list[tuple[GenerationRequest, ValueError | None]]:
        """Answers that were held back and have their law now, or the reason why they get none."""
        done = [name for name, (_, compiling) in self._compiling.items() if compiling.done]
        return [self._finish(*self._compiling.pop(name)) for name in done]

    def wait(self, seconds: float) -> None:
        """Sleep until a grammar is compiled, at most so long."""
        futures = [compiling.future for _, compiling in self._compiling.values()]
        wait([*futures, *self._renewing.values()], seconds, FIRST_COMPLETED)

    def renew(self, request_id: str) -> None:
        """The answer's grammar is spent: it stands still until that is compiled again for it alone."""
        grammar = self._laws[request_id].params.grammar
        assert grammar is not None
        assert self._grammars is not None
        self._renewing[request_id] = self._grammars.compile_alone(grammar)

    def ready(self, request_id: str) -> bool:
        """Whether the answer can go on, which it does at once when it can."""
        renewed = self._renewing.get(request_id)
        if renewed is None:
            return True
        if renewed.done():
            del self._renewing[request_id]
            failed = renewed.exception()
            if failed is not None and not isinstance(failed, GrammarError):
                log.error("a grammar that was compiled before was not again: %s", failed)
            self._laws[request_id].renew(None if failed else renewed.result())
        return renewed.done()

    def end(self, request_id: str) -> None:
        """The answer is over, or never began."""
        self._compiling.pop(request_id, None)
        self._laws.pop(request_id, None)
        self._renewing.pop(request_id, None)

    def _finish(
        self, submit: GenerationRequest, compiling: Compiling
    ) -> tuple[GenerationRequest, ValueError | None]:
        try:
            self._make(submit, compiling.matcher())
        except ValueError as error:
            return submit, error
        return submit, None

    def _make(self, submit: GenerationRequest, grammar: GrammarMatcher | None) -> None:
        self._laws[submit.request_id] = self._law(submit, grammar)

    def _law(self, submit: GenerationRequest, grammar: GrammarMatcher | None) -> Sampler:
        key = answer_key(submit.params.seed, submit.prompt, submit.choice)
        return Sampler(submit.params, submit.prompt, key, self._noise, grammar)
