"""The messages between the server process and the engine process: small, frozen, picklable, and free of
torch.

Server to engine: `Submit`, `Cancel`, `Stop`. Engine to server: `Ready`, then one `Step` per engine step, or
`Failed` once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from turbo_runtime.contract.load import Guarantee
from turbo_runtime.contract.model import StepTime

MASK_64 = (1 << 64) - 1


GrammarKind = Literal["json_schema", "json_object", "regex", "lark"]
Drafting = Literal["auto", "off", "suffix", "heads"]
DEFAULT_DRAFT = "default"  # the name of the deployment's own trained draft


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must match: a schema as JSON, a regular expression, or a grammar in Lark's notation."""

    kind: GrammarKind
    text: str = ""  # empty for `json_object`


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one answer is drawn. Temperature 0 is greedy: top-k, top-p and min-p then change nothing.

    Defaults are those that change nothing, but for temperature.
    """

    temperature: float = 1.0
    top_p: float = 1.0  # 1 keeps all
    top_k: int = 0  # 0 keeps all
    min_p: float = 0.0  # of the likeliest token's probability
    repetition_penalty: float = 1.0  # of tokens of prompt and answer, multiplicative (Keskar et al., 2019)
    presence_penalty: float = 0.0  # of tokens of the answer, once
    frequency_penalty: float = 0.0  # of tokens of the answer, for each time
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id and what its logit gains
    min_tokens: int = 0  # before which no stop token comes
    bad_words: tuple[tuple[int, ...], ...] = ()  # runs of token ids that never become complete
    grammar: Grammar | None = None
    seed: int = 0  # 64 bits
    max_tokens: int = 16  # at least 1
    stop_token_ids: frozenset[int] = frozenset()  # the model's end-of-sequence ids are added by the server
    logprobs: int | None = None  # of each token, and of so many of the likeliest; None: none are told
    prompt_logprobs: int | None = None  # the same for the prompt's tokens
    drafting: Drafting = "auto"  # which drafter; auto: whatever promises most
    max_draft_tokens: int | None = None  # at most the engine's own ceiling, which None means


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithms of probabilities under the model's own law: before every processor."""

    token: int
    logprob: float
    rank: int  # 1 for the likeliest
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens and theirs, best first


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A new answer to compute; `choice` is its index among the n answers to one prompt."""

    request_id: str
    prompt: tuple[int, ...]  # token ids, at least one
    params: SamplingParams
    choice: int = 0
    tenant: str = ""  # whose turn it takes
    salt: str = ""  # divides what the tenant shares with itself
    draft: str = DEFAULT_DRAFT  # the trained draft it chose; one that there is no more is the default

    @property
    def scope(self) -> str:
        """Whose cached prefixes and drafting memory it may use, and leaves its own to."""
        return f"{self.tenant}\n{self.salt}" if self.salt else self.tenant


@dataclass(frozen=True, slots=True)
class Abort:
    """The client left, or the server found a stop string: drop the request; no event follows."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End the engine process after the current step."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What one step brought to one request."""

    request_id: str
    tokens: tuple[int, ...] = ()  # committed in this step, in order; a final stop token is included
    finish_reason: str | None = None  # "stop", "length" or "error"
    error: str | None = None  # a sentence, with finish_reason "error"
    drafted: int = 0  # tokens verified in this step
    accepted: int = 0  # of them, committed
    logprobs: tuple[TokenLogprob, ...] = ()  # of `tokens`, where they were asked for
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None  # of the prompt from its second token on; once
    cached_tokens: int | None = None  # of the prompt, how many were found computed; with the first tokens
    queued_seconds: float | None = None  # from Submit to the first step that took it in; likewise
    speedup: float | None = None  # tokens per second over those without drafts, of this answer so far
    refused: bool = False  # with "error": the request cannot be served as it is, and nothing has failed


@dataclass(frozen=True, slots=True)
class DraftStats:
    """Of a trained draft that can be chosen: what was drafted for requests that chose it, by whomever and by
    its own layers, since its name has been in use.
    """

    name: str
    version: str = ""
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    own_draft_tokens: int = 0
    own_accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """State after a step, and what happened since the process started (counters only grow)."""

    running_requests: int = 0
    waiting_requests: int = 0
    running_tokens: int = 0
    waiting_tokens: int = 0
    kv_blocks_used: int = 0
    preemptions: int = 0
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_per_position: tuple[int, ...] = ()
    prompts: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    step_seconds: float = 0.0  # of all steps
    forward_seconds: float = 0.0  # of them, in the model
    begun_prompt_tokens: int = 0  # of prompts whose answers have a token, found in the cache or computed
    prefix_cache_queries: int = 0  # prompt tokens looked up in the prefix cache
    prefix_cache_hits: int = 0  # of them, found
    chosen_drafts: tuple[int, ...] = ()  # how often so many drafts were verified for an answer in a step
    speedup: float | None = None  # tokens per second lately over those without drafts, as probes have it
    draft_version: str = ""  # of the deployment's own draft weights
    by_draft: tuple[DraftStats, ...] = (DraftStats(DEFAULT_DRAFT),)  # the default, then those of other names
    draft_problem: str = ""  # why they are not what was asked for, or give no drafts; empty if all is well
    answering_seconds: float = 0.0  # of steps that brought answers tokens
    plain_answering_seconds: float = 0.0  # that as many tokens would have taken without drafts
    audits: int = 0  # finished answers replayed without speculation
    audit_mismatches: int = 0  # of them, those that came out otherwise


@dataclass(frozen=True, slots=True)
class StepOutput:
    """All that one engine step has to say; one message whatever the batch."""

    events: tuple[TokenEvent, ...]
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class EngineReady:
    """The model is loaded; the start-up check and the micro-benchmark have run."""

    guarantee: Guarantee
    law_reason: str = ""  # why it is only `law`
    arithmetic: dict[str, str] = field(default_factory=dict)  # weight shape -> the product form that held
    device: str = "cpu"
    dtype: str = "float32"
    max_model_len: int = 0
    kv_blocks: int = 0
    block_size: int = 16
    vocab_size: int = 0
    eos_token_ids: tuple[int, ...] = ()  # of the model's generation config; the server adds the tokenizer's
    digest: str | None = None  # of the model, as ModelFacts has it; None where it is not known
    load_seconds: float = 0.0
    check_seconds: float = 0.0
    step_times: tuple[StepTime, ...] | None = None  # None: passes are too slow to be measured at start
    measure_seconds: float = 0.0
    stats: EngineStats = field(default_factory=EngineStats)  # of the beginning: which drafts can be chosen


@dataclass(frozen=True, slots=True)
class EngineFailed:
    """The engine cannot start or go on; the process ends after this message."""

    error: str
