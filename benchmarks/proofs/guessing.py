"""A drafter that knows the answers and is wrong now and then: drafts of all lengths are taken and refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence

from turbo_runtime.drafters.interface import Draft, DraftRequest, TokenOrigin
from turbo_runtime.drafters.proposer import Proposer


class Guessing(Proposer):
    """Drafts what an answer is known to say, each token wrong with a chance of `wrong`."""

    def __init__(
        self, answers: Mapping[str, Sequence[int]], vocabulary: int, *, wrong: float, seed: int
    ) -> None:
        super().__init__()
        self._answers, self._vocabulary, self._wrong = answers, vocabulary, wrong
        self._random = random.Random(seed)

    def propose(
        self,
        wants: Sequence[DraftRequest],
        _least: float = 0.0,
        _pays: Callable[[Hashable], bool] = bool,
        _worth: float = 0.0,
        /,
    ) -> list[Draft]:
        """One draft for each want, as long as it may be."""
        return [self._draft(want) for want in wants]

    def observe(self, draft: Draft, committed: Sequence[int]) -> None:
        """It learns nothing."""

    def _draft(self, want: DraftRequest) -> Draft:
        said = len(want.tokens) - want.prompt_length
        right = self._answers[want.request_id][said : said + want.limit]
        drawn = self._random
        tokens = [drawn.randrange(self._vocabulary) if drawn.random() < self._wrong else t for t in right]
        survival = tuple((1 - self._wrong) ** n for n in range(1, len(tokens) + 1))
        return Draft(tuple(tokens), survival, (TokenOrigin("guess", None),) * len(tokens))
