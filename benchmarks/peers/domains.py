"""What is asked in the contest: a domain's prompts, dealt into runs, without those whose answers loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from token_runs import RUN, runs_of_tokens

from peers.contest import PLAIN, Contest
from turbo_runtime.distill.data.responses import is_looping

_AT_ONCE = 8  # prompts answered together while answers are looked at


@dataclass(frozen=True)
class Asked:
    """A prompt, and what the model says to it without drafts, its end token left off."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Domain:
    """`runs` have no prompt in common with one another, with `warm` or with `learn`."""

    name: str
    warm: list[list[int]]
    learn: list[list[int]]  # prompts that nobody is asked; as many as are left
    runs: list[list[Asked]]
    looping: int  # answers left out
    warm_answers: list[list[int]] = field(default_factory=list)
    learn_answers: list[list[int]] = field(default_factory=list)

    @property
    def asked(self) -> list[Asked]:
        """All runs together."""
        return [one for run in self.runs for one in run]

    @property
    def recurring(self) -> tuple[int, int]:
        """Answers that are word for word among those warmed with, and among all that a draft knows."""
        warm = set(map(tuple, self.warm_answers))
        known = warm | set(map(tuple, self.learn_answers))
        answers = [tuple(one.answer) for one in self.asked]
        return sum(answer in warm for answer in answers), sum(answer in known for answer in answers)

    @property
    def copied_fraction(self) -> float:
        """Share of the tokens that lie in runs of `RUN` that answers which are warmed with have, too."""
        known = {run for answer in self.warm_answers for run in runs_of_tokens(answer)}
        copied = 0
        for one in self.asked:
            places = set[int]()
            for at, run in enumerate(runs_of_tokens(one.answer)):
                if run in known:
                    places.update(range(at, at + RUN))
            copied += len(places)
        return copied / self.tokens if self.tokens else 0.0

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return sum(len(one.answer) for one in self.asked)


@dataclass(frozen=True)
class Wanted:
    """How much is asked of each domain."""

    prompts: int
    tokens: int
    warm: int
    learn: int  # prompts at most
    runs: int
    answer_tokens: int  # of one answer, at most
    stop: list[int]  # tokens that end one


def trimmed(answer: Sequence[int], stop: Sequence[int]) -> list[int]:
    """An answer without its end token, which some servers tell and some do not."""
    end = len(answer) - 1 if answer and answer[-1] in stop else len(answer)
    return list(answer[:end])


def deal(contest: Contest, name: str, prompts: Sequence[list[int]], wanted: Wanted) -> Domain:
    """The first prompts whose answers do not loop, until there are enough prompts and tokens."""
    kept: list[Asked] = []
    looping = tokens = looked = 0
    limits = (wanted.answer_tokens, wanted.stop)
    contest.begin(PLAIN, [], limits)
    for start in range(0, len(prompts), _AT_ONCE):
        batch = prompts[start : start + _AT_ONCE]
        looked += len(batch)
        found = contest.answer(PLAIN, batch, _AT_ONCE, limits)
        for prompt, told in zip(batch, found.answers, strict=True):
            answer = trimmed(told, wanted.stop)
            if is_looping(answer):
                looping += 1
            elif len(kept) < wanted.warm + wanted.prompts or tokens < wanted.tokens:
                kept.append(Asked(prompt, answer))
                tokens += len(answer) if len(kept) > wanted.warm else 0
        if len(kept) >= wanted.warm + wanted.prompts and tokens >= wanted.tokens:
            break
    warm, asked = kept[: wanted.warm], kept[wanted.warm :]
    runs = [asked[first :: wanted.runs] for first in range(min(wanted.runs, len(asked)))]
    learn = list(prompts[looked : looked + wanted.learn])
    responses = contest.answer(PLAIN, learn, _AT_ONCE, limits).answers if learn else []
    learned = [trimmed(answer, wanted.stop) for answer in responses]
    return Domain(
        name,
        [one.prompt for one in warm],
        learn,
        runs,
        looping,
        [one.answer for one in warm],
        learned,
    )
