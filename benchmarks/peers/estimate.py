"""How long a contest is going to take, by the speeds that competitors are used to."""

from __future__ import annotations

from collections.abc import Sequence

from peers.contest import Competitor

_OF_ONE = 4.0  # as many tokens/s together as one request at a time has, where they are batched
_OF_A_DOMAIN = 40.0  # seconds in which answers are looked at, and a draft is trained
_START = 60.0  # seconds to start a competitor


def minutes(
    domains: int, tokens: int, runs: int, at_a_time: Sequence[int], competitors: Sequence[Competitor]
) -> float:
    """On one thread, for domains of so many answer tokens that are dealt into so many runs."""
    seconds = _OF_A_DOMAIN * domains + _START * len({one.process for one in competitors})
    for count in at_a_time:
        for one in competitors:
            if one.batches or count == 1:
                share = 1 / runs if one.once else 1.0
                seconds += domains * tokens * share / (one.usual * (_OF_ONE if count > 1 else 1.0))
    return seconds / 60
