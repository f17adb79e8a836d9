"""The prompts of a run, dealt into parts and tokenized; the model's own responses to them; and those that are
kept with a draft for others to learn from.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from turbo_runtime.distill.recipe import PARTS, TRAINING, DistillError, Recipe
from turbo_runtime.distill.workspace import read_training
from turbo_runtime.drafters.draft_memory import PROMPT_TAIL, Answer, DraftMemory, select_answers
from turbo_runtime.files import write_whole
from turbo_runtime.prompts import Prompt, PromptsError
from turbo_runtime.protocol import ChatRequest, parse
from turbo_runtime.protocol.errors import ApiError

GROUP = 64  # responses that are computed together, and that a kill loses at most
ANSWERS_FILE = "answers.jsonl"
_LOOP_REPEATS = 3  # in a row at a response's end make a loop
_MIN_LOOP_TOKENS = 24  # shorter repeats are lists and tables
_TOKENS: dict[int, int] = {}
Item = TypeVar("Item")
_MIN_DEALT = 3  # prompts of a domain, from which on every part gets one


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt in tokens. `choice` tells apart several responses to the same one."""

    part: str  # what the response is for
    domain: str
    prompt: tuple[int, ...]
    choice: int = 0
    temperature: float = 0.0  # that the response is drawn at
    seed: int = 0  # of the noise that it is drawn with; greedy responses have none
    shared: bool = False  # whether anybody may draft from the response: its prompt is the operator's own
    tenant: str | None = None  # the only one that may, of a captured prompt; None: nobody


@dataclass(frozen=True, slots=True)
class Completion:
    """A response of the model; a token that ended it is the last of `tokens`."""

    request: TokenizedPrompt
    tokens: tuple[int, ...]

    @property
    def text(self) -> tuple[int, ...]:
        """The tokens of prompt and response."""
        return (*self.request.prompt, *self.tokens)

    @property
    def line(self) -> str:
        """The row of a file, as JSON."""
        return json.dumps({**asdict(self.request), "tokens": self.tokens})

    @property
    def shuffle_key(self) -> bytes:
        """A key that orders responses so that similar ones are not neighbors."""
        return hashlib.blake2b(self.line.encode(), digest_size=16).digest()


def intern_tokens(tokens: Iterable[Any]) -> tuple[int, ...]:
    """Share one object for a token however often it occurs: that saves three quarters of the memory."""
    return tuple(_TOKENS.setdefault(token, token) for token in map(int, tokens))


def shuffled(items: Iterable[Item], seed: object) -> list[Item]:
    """Shuffle a copy, always alike with the same seed, a number or a text."""
    mixed = list(items)
    random.Random(seed).shuffle(mixed)  # type: ignore[arg-type]  # noqa: S311  a shuffle, no secret
    return mixed


def is_looping(tokens: Sequence[int]) -> bool:
    """Whether the end repeats with any period: any drafter is fast on it, and no user wants it."""
    for period in range(1, len(tokens) // _LOOP_REPEATS + 1):
        length = max(_LOOP_REPEATS * period, _MIN_LOOP_TOKENS)
        end = tokens[-length:]
        if len(end) == length and all(end[i] == end[i - period] for i in range(period, length)):
            return True
    return False


def write_requests(file: Path, prompts: Iterable[TokenizedPrompt]) -> None:
    """Write a line for each."""
    write_whole(file, "".join(json.dumps(asdict(prompt)) + "\n" for prompt in prompts))


def read_requests(file: Path) -> list[TokenizedPrompt] | None:
    """Read what `write_requests` wrote; None where there is nothing, or nothing readable."""
    try:
        with file.open(encoding="utf-8") as lines:
            return [_prompt_of(json.loads(line)) for line in lines]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _prompt_of(row: Mapping[str, Any]) -> TokenizedPrompt:
    return TokenizedPrompt(**{**row, "prompt": intern_tokens(row["prompt"])})


def answer_all(
    prompts: Sequence[TokenizedPrompt],
    folder: Path,
    answer: Callable[[Sequence[TokenizedPrompt], Callable[[], None]], Sequence[tuple[int, ...]]],
    done: Callable[[int, bool], None],
) -> list[Completion]:
    """Return a response to each prompt, read from `folder` where an earlier run left it; `done` receives how
    many more there are, and whether they were read. Groups never change, so the same is computed together
    however often the work is interrupted. `answer` takes prompts, and a function to call after each response.
    """
    completions: list[Completion] = []
    for number, first in enumerate(range(0, len(prompts), GROUP)):
        group, file = prompts[first : first + GROUP], folder / f"{number:05}.json"
        try:
            responses = [intern_tokens(tokens) for tokens in json.loads(file.read_text(encoding="utf-8"))]
        except (FileNotFoundError, ValueError, TypeError):  # a disk may lose what it took
            responses = []
        if len(responses) == len(group):
            done(len(group), True)
        else:
            responses = list(answer(group, lambda: done(1, False)))
            write_whole(file, json.dumps(responses))
        completions += map(Completion, group, responses)
    return completions


@dataclass(frozen=True, slots=True)
class Kept:
    """Responses that earlier runs kept, and the captured prompts that they answer."""

    completions: tuple[Completion, ...] = ()
    captures: tuple[Mapping[str, Any], ...] = ()  # as the checkpoints record them

    def check(self, vocabulary_size: int, max_tokens: int) -> None:
        """Raise DistillError where a model with such a vocabulary and context cannot read all of it."""
        for completion in self.completions:
            text = completion.text
            if not all(0 <= token < vocabulary_size for token in text):
                raise DistillError(f"an answer that was kept has a token that none of {vocabulary_size} is")
            if len(text) > max_tokens:
                raise DistillError(
                    f"of the answers that were kept one has {len(text)} tokens with its prompt, and there is "
                    f"room for {max_tokens}: raise --max-model-len"
                )


def remember(completions: Iterable[Completion], max_mib: float) -> DraftMemory:
    """Return what a draft brings of the responses that it learnt from: of each prompt first the one that it
    is served with, in an order that mixes domains.
    """
    answers = (
        Answer(
            (*request.prompt[-PROMPT_TAIL:], *completion.tokens), None if request.shared else request.tenant
        )
        for completion in sorted(completions, key=lambda each: (each.request.choice, each.shuffle_key))
        if (request := completion.request).shared or request.tenant is not None
    )
    return select_answers(answers, max_mib)


def write_kept(out: Path, completions: Iterable[Completion]) -> None:
    """Write the responses into the folder of the checkpoint."""
    write_whole(out / ANSWERS_FILE, "".join(completion.line + "\n" for completion in completions))


def read_kept(folders: Sequence[Path], target_digest: str) -> Kept:
    """Read what runs for that model kept, in any order of `folders`. Raises DistillError. A prompt that a run
    held out is held out and counts with one response: else speedups would be measured on what the engine has
    just generated. Equal responses count once.
    """
    completions, captures = list[Completion](), list[Mapping[str, Any]]()
    for folder in folders:
        if (training := read_training(folder)) is None:
            raise DistillError(f"{folder} holds no draft; name the folders of `turbo distill --keep-answers`")
        if (made_for := training["request"].get("target_digest")) != target_digest:
            raise DistillError(
                f"the answers of {folder} are those of another model: {made_for} and not {target_digest}"
            )
        if "capture" in training:
            captures.append(training["capture"])
        completions += _read_completions(folder / ANSWERS_FILE)
    parts = sorted(completions, key=lambda completion: PARTS.index(completion.request.part), reverse=True)
    part_of = {c.request.prompt: c.request.part for c in parts}  # the first of PARTS
    dealt = {Completion(replace(c.request, part=part_of[c.request.prompt]), c.tokens) for c in completions}
    unique: dict[object, Completion] = {}
    for completion in sorted(dealt, key=lambda completion: completion.shuffle_key):
        request = completion.request
        key = (request.prompt, completion.tokens if request.part == TRAINING else None)
        if key not in unique or request.choice < unique[key].request.choice:
            unique[key] = completion
    return Kept(tuple(unique.values()), tuple(captures))


def _read_completions(file: Path) -> list[Completion]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DistillError(f"{file} is not there; distil with --keep-answers first") from None
    completions = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            tokens = intern_tokens(row.pop("tokens"))
            PARTS.index(row["part"])
            completions.append(Completion(_prompt_of(row), tokens))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DistillError(f"{file}, line {number}, is no answer that was kept; make it anew") from error
    return completions


def deal(prompts: Sequence[Prompt], seed: int, shares: Mapping[str, float]) -> dict[str, list[Prompt]]:
    """Deal the prompts, each once, into parts: `shares` of every domain, and the rest into the last part.
    Their order and the other domains change nothing.
    """
    parts: dict[str, list[Prompt]] = {name: [] for name in shares}
    *first, last = shares
    key = seed.to_bytes(8, "little")
    in_order = sorted(prompts, key=lambda prompt: (prompt.content, prompt.domain))
    unique = {prompt.content: prompt for prompt in reversed(in_order)}.values()
    lots = {p.content: hashlib.blake2b(p.content.encode(), digest_size=16, key=key).digest() for p in unique}
    drawn = sorted(unique, key=lambda prompt: lots[prompt.content])
    for domain in sorted({prompt.domain for prompt in unique}):
        remaining = [prompt for prompt in drawn if prompt.domain == domain]
        count = len(remaining)
        for name in first:
            size = max(round(shares[name] * count), int(count >= _MIN_DEALT))
            parts[name] += remaining[:size]
            del remaining[:size]
        parts[last] += remaining
    return parts


def render_turns(prompt: Prompt) -> list[dict[str, Any]]:
    """Render a chat's turns as the server does. Raises PromptsError for what no client can send."""
    try:
        request = parse(ChatRequest, {"model": "any", "messages": list(prompt.messages)})
    except ApiError as error:
        raise PromptsError(f"prompt {prompt.name}: {error}") from error
    return [message.for_template() for message in request.messages]


def tokenize(
    parts: Mapping[str, Sequence[Prompt]],
    encode: Callable[[Prompt], Sequence[int]],
    recipe: Recipe,
    max_tokens: int,
) -> tuple[list[TokenizedPrompt], int]:
    """Tokenize the prompts, once for each response that is wanted of one. Captured prompts of more than
    `max_tokens` are left out and counted; raises PromptsError for those of files, and for empty ones.
    """
    tokenized, long, num_left_out = list[TokenizedPrompt](), list[str](), 0
    if max_tokens < 1:
        raise PromptsError(
            f"an answer of {recipe.max_tokens} tokens leaves no room for a prompt, of "
            f"{max_tokens + recipe.max_tokens} together: lower --max-tokens or raise --max-model-len"
        )
    for part, prompts in parts.items():
        warmer = max(recipe.temperature, recipe.variant_temperature)
        temperatures = [recipe.temperature, *[warmer] * (recipe.variants if part == TRAINING else 0)]
        for prompt in prompts:
            tokens = intern_tokens(encode(prompt))
            if not tokens:
                raise PromptsError(f"prompt {prompt.name} has no token; leave it out")
            if len(tokens) <= max_tokens:
                whose = prompt.captured_at is None, prompt.tenant
                tokenized += (
                    TokenizedPrompt(
                        part, prompt.domain, tokens, choice, heat, recipe.seed if heat else 0, *whose
                    )
                    for choice, heat in enumerate(temperatures)
                )
            elif prompt.captured_at is None:
                long.append(prompt.name)
            else:
                num_left_out += 1
    if long:
        names = ", ".join(long[:3]) + (f" and {len(long) - 3} more" if len(long) > 3 else "")
        raise PromptsError(
            f"beside an answer of {recipe.max_tokens} there is room for prompts of {max_tokens} tokens, and "
            f"{names} are longer: leave them out, lower --max-tokens or raise --max-model-len"
        )
    return tokenized, num_left_out
