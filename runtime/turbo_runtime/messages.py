"""The messages between the server process and the engine process: small, frozen, picklable, without torch.

Server to engine: `GenerationRequest`, `Abort`, `Shutdown`. Engine to server: `EngineReady`, then a
`StepOutput` per step, or `EngineFailed` once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from turbo_runtime.contract.config import DraftMethod
from turbo_runtime.contract.documents import Guarantee, StepTime

MASK_64 = (1 << 64) - 1
GrammarKind = Literal["json_schema", "json_object", "regex", "lark"]
DEFAULT_DRAFT = "default"  # the name of the deployment's own trained draft


@dataclass(frozen=True, slots=True)
class Grammar:
    """A constraint on an answer: a JSON schema, a regular expression, or a grammar in Lark's notation."""

    kind: GrammarKind
    text: str = ""  # empty for `json_object`


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw one answer. The defaults change nothing but the temperature; temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0  # 1 keeps all
    top_k: int = 0  # 0 keeps all
    min_p: float = 0.0  # share of the likeliest token's probability
    repetition_penalty: float = 1.0  # for tokens of prompt and answer, a factor (Keskar et al., 2019)
    presence_penalty: float = 0.0  # for tokens of the answer, once
    frequency_penalty: float = 0.0  # for tokens of the answer, for each time
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id and what is added to its logit
    min_tokens: int = 0  # before any stop token
    bad_words: tuple[tuple[int, ...], ...] = ()  # runs of token ids that may not occur
    grammar: Grammar | None = None
    seed: int = 0  # 64 bits
    max_tokens: int = 16  # at least 1
    stop_token_ids: frozenset[int] = frozenset()  # the server adds the model's end-of-sequence ids
    logprobs: int | None = None  # for each token and that many likeliest ones; None: none
    prompt_logprobs: int | None = None  # the same for the prompt's tokens
    draft_method: DraftMethod = "auto"  # the drafter; auto: whatever promises most
    max_draft_tokens: int | None = None  # None: the engine's limit, which also bounds it


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithms of probabilities under the model's own distribution, before all processors."""

    token: int
    logprob: float
    rank: int  # 1 for the likeliest
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens, best first


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A new answer to compute."""

    request_id: str
    prompt: tuple[int, ...]  # token ids, at least one
    params: SamplingParams
    choice: int = 0  # index among the n answers to one prompt
    tenant: str = ""  # the unit of fairness
    salt: str = ""  # separates scopes of one tenant
    draft: str = DEFAULT_DRAFT  # its trained draft; the default if that is not in use
    lora_id: int = 0  # number of its adapter, from 1 in the order of --lora-modules; 0: the model itself

    @property
    def scope(self) -> str:
        """The requests with which it shares cached prefixes and texts to draft from: of one adapter, which
        changes keys and values, of one tenant and of one salt.
        """
        scope = f"{self.tenant}\n{self.salt}" if self.salt else self.tenant
        return f"{self.lora_id}\0{scope}" if self.lora_id else scope  # a tenant's name has no zero byte


@dataclass(frozen=True, slots=True)
class Abort:
    """Drop a request whose client left or whose text has a stop string; no event follows."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End the engine process after the current step."""


Refused: TypeAlias = Literal["request", "grammar"]  # what of a request is invalid


class TokenEvent(NamedTuple):
    """The result of one step for one request."""

    request_id: str
    tokens: tuple[int, ...] = ()  # committed in this step, in order; a final stop token is included
    finish_reason: str | None = None  # "stop", "length" or "error"
    error: str | None = None  # a sentence, with finish_reason "error"
    drafted: int = 0  # tokens verified in this step
    accepted: int = 0  # of them committed
    logprobs: tuple[TokenLogprob, ...] = ()  # of `tokens`, if requested
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None  # of the prompt from the second token on; once
    cached_tokens: int | None = None  # of the prompt, found in the prefix cache; with the first tokens
    queued_seconds: float | None = None  # from arrival to the first step; likewise
    refused: Refused | None = None  # with "error"; None: the engine failed
    speedup: float | None = None  # of this answer so far; last, since it comes last


@dataclass(frozen=True, slots=True)
class DraftStats:
    """Counters of a trained draft for the requests that chose it; `own_`: by its own layers alone."""

    name: str
    version: str = ""
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    own_draft_tokens: int = 0
    own_accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The state after a step, and counters since the process started."""

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
    forward_seconds: float = 0.0  # of them in the model
    begun_prompt_tokens: int = 0  # of prompts whose answers have a token
    prefix_cache_queries: int = 0  # prompt tokens looked up in the prefix cache
    prefix_cache_hits: int = 0  # of them found
    verified_draft_length: tuple[int, ...] = ()  # how often n drafts were verified in a step, by n
    speedup: float | None = None  # recent tokens per second over those without drafts
    draft_version: str = ""  # of the deployment's own draft weights
    by_draft: tuple[DraftStats, ...] = (DraftStats(DEFAULT_DRAFT),)  # the default, then those of other names
    draft_error: str = ""  # why drafts are not as configured or fail; else empty
    generation_seconds: float = 0.0  # of steps that gave answers tokens
    baseline_generation_seconds: float = 0.0  # for as many tokens without drafts
    audits: int = 0  # finished answers replayed without speculation
    audit_mismatches: int = 0  # of them with another result


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The results of one engine step."""

    events: tuple[TokenEvent, ...]
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class ThreadSettings:
    """How the threads of a CPU compute."""

    count: int = 1  # of one rank
    wait: Literal["sleep", "spin", "environment"] = "sleep"  # for each other; or as variables say
    reason: str = ""


@dataclass(frozen=True, slots=True)
class EngineReady:
    """The model is loaded; the start-up check and the micro-benchmark have run."""

    guarantee: Guarantee
    guarantee_reason: str = ""  # why only `distribution`
    arithmetic: dict[str, str] = field(default_factory=dict)  # weight shape -> its matmul kernel
    device: str = "cpu"
    dtype: str = "float32"
    threads: ThreadSettings = ThreadSettings()
    tensor_parallel_size: int = 1
    max_model_len: int = 0
    max_num_seqs: int = 0  # requests decoded together at most
    kv_blocks: int = 0
    block_size: int = 16
    vocab_size: int = 0
    eos_token_ids: tuple[int, ...] = ()  # of the generation config; the server adds the tokenizer's
    digest: str | None = None  # of the model (`ModelInfo`); None if unknown
    load_seconds: float = 0.0
    check_seconds: float = 0.0
    step_times: tuple[StepTime, ...] | None = None  # None: passes are too slow to measure
    measure_seconds: float = 0.0
    stats: EngineStats = field(default_factory=EngineStats)  # at the start, with the drafts to choose from


@dataclass(frozen=True, slots=True)
class EngineFailed:
    """The engine cannot start or go on; the process ends after this message."""

    error: str
