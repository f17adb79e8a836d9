"""The law of a token under drafts: all streams, the exact chance of every path, and a long sample."""

from __future__ import annotations

from turbo_dev.coupling import (
    MUTANTS,
    SHORT_DRAFTS,
    Verifier,
    all_models,
    differing,
    exact_law,
    least_p_value,
    own_law,
    sample,
)
from turbo_runtime.messages import SamplingParams
from turbo_runtime.speculation.verification import verify

TEMPERATURES = (0.7, 1.0, 1.6)
SAMPLED = 20_000  # tokens
IMPOSSIBLE = 1e-6  # a p-value that the law itself does not give


def figures() -> dict[str, float]:
    """What is found of the verifier, and how many broken ones are caught by each proof."""
    models = all_models()
    law = own_law()
    samples = [(sample(verify, 6, SamplingParams(temperature=t), SAMPLED), t) for t in TEMPERATURES]

    def other_law(verifier: Verifier) -> bool:
        return any(exact_law(verifier, draft) != law for draft in SHORT_DRAFTS)

    def unlikely(verifier: Verifier) -> bool:
        return least_p_value(sample(verifier, 6, SamplingParams()).tokens, 1.0) < IMPOSSIBLE

    return {
        "streams": len(models),
        "stream_differences": differing(verify, models),
        "broken_caught_by_streams": sum(differing(mutant, models[::97]) > 0 for mutant in MUTANTS),
        "law_differences": other_law(verify),
        "broken_caught_by_exact_law": sum(map(other_law, MUTANTS)),
        "chi_square_p_min": min(least_p_value(found.tokens, t) for found, t in samples),
        "sampled_accepted": sum(found.accepted for found, _ in samples),
        "broken_caught_by_chi_square": sum(map(unlikely, MUTANTS)),
    }
