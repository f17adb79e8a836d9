"""What a training tells survives its way, and fits where a pod leaves it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.contract.documents import (
    MOST_DOMAINS,
    DomainEvaluation,
    DraftManifest,
    JobProgress,
    MeasuredSpeedup,
)
from turbo_runtime.contract.endpoints import TERMINATION_MESSAGE_BYTES

WORDS = st.text(max_size=40)
COUNTS = st.integers(0, 1 << 40)
RATIOS = st.floats(0, 100)
FACTS = st.builds(
    DraftManifest,
    method=st.sampled_from(["heads", "eagle3"]),
    version=WORDS,
    digest=WORDS,
    target_digest=WORDS,
    domain=WORDS,
    captured=COUNTS,
    worth=st.lists(
        st.builds(
            DomainEvaluation,
            domain=WORDS,
            acceptance_length=st.none() | RATIOS,
            acceptance_per_position=st.lists(RATIOS, max_size=8).map(tuple),
            speedups=st.lists(
                st.builds(MeasuredSpeedup, batch=COUNTS, before=RATIOS, after=RATIOS), max_size=3
            ).map(tuple),
        ),
        max_size=MOST_DOMAINS,
    ).map(tuple),
)


@given(facts=FACTS)
def test_facts_of_a_draft_survive_on_one_line(facts: DraftManifest) -> None:
    assert "\n" not in facts.to_json()
    assert DraftManifest.from_json(facts.to_json()) == facts


def test_facts_of_a_draft_fit_a_termination_message() -> None:
    speedups = tuple(MeasuredSpeedup(batch, 12.3456, 12.3456) for batch in (1, 8, 32))
    worth = DomainEvaluation("d" * 63, 12.3456, (0.1234,) * 8, speedups)
    digest = "sha256:" + "f" * 64
    facts = DraftManifest(
        "eagle3", "d" * 63 + "-01234567", digest, digest, "d" * 63, 99_999, (worth,) * MOST_DOMAINS
    )
    assert len(facts.to_json().encode()) < TERMINATION_MESSAGE_BYTES


@given(
    told=st.builds(
        JobProgress,
        stage=WORDS,
        done=COUNTS,
        total=COUNTS,
        unit=WORDS,
        left_seconds=st.none() | st.floats(0, 1e9),
    )
)
def test_how_far_a_training_is_survives(told: JobProgress) -> None:
    assert JobProgress.from_json(told.to_json()) == told
