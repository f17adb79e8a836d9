"""What broken verifiers are caught by: every stream, the exact law, and a long sample of it.

Tests and the benchmark `lossless` hold the real verifier to these, and three broken ones.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import torch
from scipy import stats

from turbo_runtime.drafters.interface import Draft, DraftRequest
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.messages import SamplingParams
from turbo_runtime.sampling.noise import Noise, answer_key
from turbo_runtime.sampling.sampler import AnswerRows, Sampler, TokenAt, tokens_of_step
from turbo_runtime.speculation.verification import VerificationResult, verify

Verifier = Callable[..., VerificationResult]


def accepts_without_comparing(
    token_at: TokenAt, drafts: Sequence[int], *, stop_ids: Collection[int], room: int
) -> VerificationResult:
    """Takes the drafts for right, the token behind them for the bonus."""
    del stop_ids
    tokens = (*drafts, token_at(len(drafts)))[:room]
    return VerificationResult(tokens, min(len(drafts), room), "length" if len(tokens) == room else None)


def skips_the_correction(token_at: TokenAt, drafts: Sequence[int], **rest: object) -> VerificationResult:
    """Where a draft is wrong, says what the row behind the wrong draft says."""
    verdict = verify(token_at, drafts, **rest)  # type: ignore[arg-type]
    if verdict.accepted == len(drafts):
        return verdict
    return VerificationResult(
        (*verdict.tokens[:-1], token_at(verdict.accepted + 1)), verdict.accepted, verdict.finish_reason
    )


def reuses_the_row_before(token_at: TokenAt, drafts: Sequence[int], **rest: object) -> VerificationResult:
    """Off by one: row and noise of the position before, where there is one."""
    return verify(lambda row: token_at(max(0, row - 1)), drafts, **rest)  # type: ignore[arg-type]


MUTANTS = [accepts_without_comparing, skips_the_correction, reuses_the_row_before]

# -- every stream

LENGTH = 4
STOP = 2
Model = Callable[[tuple[int, ...]], int]


def stream(model: Model, verifier: Verifier, draft: Sequence[int]) -> tuple[int, ...]:
    """The answer of a deterministic model, step by step, each step with this draft."""
    answer: tuple[int, ...] = ()
    while True:
        verdict = verifier(
            lambda row, context=answer: model(context + tuple(draft[:row])),
            draft,
            stop_ids={STOP},
            room=LENGTH - len(answer),
        )
        answer += verdict.tokens
        if verdict.finish_reason:
            return answer


def all_models() -> list[Model]:
    """Every deterministic model whose token depends on the last token and the position's parity."""
    keys = list(itertools.product((None, 0, 1, 2), (0, 1)))
    tables = (
        dict(zip(keys, choice, strict=True)) for choice in itertools.product(range(3), repeat=len(keys))
    )
    return [partial(_looked_up, table) for table in tables]


def _looked_up(table: dict[tuple[int | None, int], int], context: tuple[int, ...]) -> int:
    return table[(context[-1] if context else None, len(context) % 2)]


DRAFTS = [draft for k in range(LENGTH) for draft in itertools.product(range(3), repeat=k)]


def differing(verifier: Verifier, models: Sequence[Model]) -> int:
    """Of all models and all drafts, how many streams differ from the one without drafts."""
    own = [stream(model, verify, ()) for model in models]
    return sum(
        stream(model, verifier, draft) != said
        for model, said in zip(models, own, strict=True)
        for draft in DRAFTS
    )


# -- the exact law

# P(0), P(1), P(2) after each token, as six equally likely values of the noise of a position
OUTCOMES = {None: (0, 0, 0, 1, 1, 2), 0: (0, 1, 1, 1, 2, 2), 1: (0, 0, 1, 2, 2, 2), 2: (0, 0, 0, 0, 1, 2)}
PATHS = list(itertools.product(range(3), repeat=3))


SHORT_DRAFTS = [draft for draft in DRAFTS if len(draft) < 3]


def _noisy_token(noise: Sequence[int], answer: tuple[int, ...], drafts: tuple[int, ...], row: int) -> int:
    context = answer + drafts[:row]
    return OUTCOMES[context[-1] if context else None][noise[len(context)]]


def exact_law(verifier: Verifier, draft: Sequence[int]) -> dict[tuple[int, ...], Fraction]:
    """The chance of each three tokens: all noises of three positions, the first step with `draft`."""
    counts: Counter[tuple[int, ...]] = Counter()
    noises = list(itertools.product(range(6), repeat=3))
    for noise in noises:
        answer: tuple[int, ...] = ()
        guess = tuple(draft)
        while len(answer) < 3:
            token_at = partial(_noisy_token, noise, answer, guess)
            answer += verifier(token_at, guess, stop_ids=(), room=3 - len(answer)).tokens
            guess = ()
        counts[answer] += 1
    return {path: Fraction(counts[path], len(noises)) for path in PATHS}


def own_law() -> dict[tuple[int, ...], Fraction]:
    """The same of the model alone, by multiplication."""

    def chance(last: int | None, token: int) -> Fraction:
        return Fraction(OUTCOMES[last].count(token), 6)

    return {(a, b, c): chance(None, a) * chance(a, b) * chance(b, c) for a, b, c in PATHS}


# -- the sampled law

TABLE = torch.tensor(
    [[2.0, 0.0, -1.0, 0.5], [0.0, 1.5, 0.0, 0.0], [1.0, 1.0, 1.0, -2.0], [0.0, 0.0, 2.0, 0.0]]
)


@dataclass
class Sampled:
    """A long answer of the first-order law of TABLE, and how its drafts fared."""

    tokens: list[int]
    accepted: int = 0
    drafted: int = 0


def sample(verifier: Verifier, limit: int, params: SamplingParams, length: int = 3000) -> Sampled:
    """Through the real drafter, noise, law and rows."""
    noise, drafters = Noise(len(TABLE)), Proposer()
    law = Sampler(params, (0,), answer_key(5, (0,), 0), noise)
    result = Sampled([0])
    while len(result.tokens) <= length:
        tokens = result.tokens
        draft = Draft()
        if limit:
            (draft,) = drafters.propose(
                [DraftRequest("r", tokens, 1, limit, "", law.key, params.temperature)]
            )
        drafts = list(draft.tokens)
        rows = TABLE[torch.tensor([tokens[-1], *drafts])]
        (token_at,) = tokens_of_step(rows, [AnswerRows(law, tokens, drafts, 0)], noise)
        verdict = verifier(token_at, drafts, stop_ids=(), room=length + 1 - len(tokens))
        drafters.observe(draft, verdict.tokens)
        tokens.extend(verdict.tokens)
        result.accepted += verdict.accepted
        result.drafted += len(drafts)
    return result


def least_p_value(tokens: Sequence[int], temperature: float) -> float:
    """Of chi-square tests of what followed each token, and of each pair of tokens in turn."""
    found = []
    for last in range(4):
        after = Counter(b for a, b in itertools.pairwise(tokens) if a == last)
        law = torch.softmax(TABLE[last].double() / temperature, 0)
        found.append(stats.chisquare([after[t] for t in range(4)], (law * after.total()).tolist()).pvalue)
    return float(min(found))
