"""How long a contest is going to take, by the speeds that competitors are used to."""

from __future__ import annotations

from collections.abc import Sequence

from peers.contest import Competitor
from peers.domains import Wanted

_OF_ONE = 4.0  # as many tokens/s together as one request at a time has, where they are batched
_OF_A_DOMAIN = 40.0  # seconds in which answers are looked at, and a draft is trained
_START = 60.0  # seconds to start a competitor


def minutes(
    domains: int, wanted: Wanted, at_a_time: Sequence[int], competitors: Sequence[Competitor]
) -> float:
    """On one thread. What remembers answers is warmed before each run with many prompts at a time."""
    seconds = _OF_A_DOMAIN * domains + _START * len({one.process for one in competitors})
    warming = wanted.runs * wanted.warm * wanted.tokens / wanted.prompts
    for count in at_a_time:
        for one in competitors:
            if one.batches or count == 1:
                tokens = wanted.tokens / wanted.runs if one.once else wanted.tokens
                timed = tokens / (one.usual * (_OF_ONE if count > 1 else 1.0))
                warmed = warming / (one.usual * _OF_ONE) if one.remembers else 0.0
                seconds += domains * (timed + warmed)
    return seconds / 60
