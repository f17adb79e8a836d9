"""The JSON documents that processes report, checked when read: another version may have written one."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

Guarantee = Literal["bitwise", "distribution"]
PROGRESS_PATH = "/progress"  # `JobProgress` as JSON
MOST_DOMAINS = 6  # of a draft's worth, so that it fits a termination message

_hints = functools.cache(get_type_hints)  # most of what reading a document would take
# A count that no counter of 64 bits holds is nonsense, and a float of it an error.
LARGEST = (1 << 63) - 1
_MOST_ITEMS = 256  # of a list in a document


@dataclass(frozen=True, slots=True)
class JsonDocument:
    """A record that a process reports as JSON, to readers of other versions."""

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read it: unknown keys are ignored, a missing one has its default. Raises ValueError."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:  # of too many brackets or digits
            raise ValueError(f"{cls.__name__}: not JSON: {error}") from error
        record: Self = _from_document(cls, document)
        return record


def _read(value: object, hint: Any, low: int) -> Any:
    """Read a JSON value as a field of type `hint`, a number not below `low`. Raises ValueError."""
    options = get_args(hint)
    if get_origin(hint) is UnionType:
        if value is None and NoneType in options:
            return None
        return _read(value, next(option for option in options if option is not NoneType), low)
    if dataclasses.is_dataclass(hint):
        return _from_document(hint, value)
    if get_origin(hint) is tuple:
        if isinstance(value, list) and len(value) <= _MOST_ITEMS:
            return tuple(_read(item, options[0], low) for item in value)
        fits = False
    elif get_origin(hint) is Literal:
        fits = value in options
    elif hint in (int, float):
        # Of a float an integer will do; a boolean is neither, and no comparison holds of NaN.
        kinds = int if hint is int else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= LARGEST
    else:
        fits = isinstance(value, hint)
    if not fits:
        brief = type(value).__name__ if isinstance(value, (list, dict)) else repr(value)[:80]
        raise ValueError(f"cannot be {brief}")
    return value


def _from_document(cls: Any, document: object) -> Any:
    if not isinstance(document, dict):
        raise ValueError(f"{cls.__name__}: expected an object, got {type(document).__name__}")
    values: dict[str, Any] = {}
    hints = _hints(cls)
    for spec in dataclasses.fields(cls):
        optional = spec.default is not dataclasses.MISSING
        if spec.name not in document:
            if optional:
                continue
            raise ValueError(f"{cls.__name__}: {spec.name} is missing")
        low = int(not optional and getattr(cls, "POSITIVE", False))
        try:
            values[spec.name] = _read(document[spec.name], hints[spec.name], low)
        except ValueError as error:
            raise ValueError(f"{cls.__name__}: {spec.name} {error}") from error
    return cls(**values)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the planner needs to know of a decoder-only model; counts are of elements, not bytes."""

    POSITIVE: ClassVar = True  # of all that has no default: it is divided by

    architecture: str  # e.g. LlamaForCausalLM
    parameters: int  # all weights, a tied embedding counted once
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int  # of latent attention as many as heads, though none is cached
    head_dim: int  # of a query and a key
    vocab_size: int
    max_position: int  # longest context in tokens
    dtype: str  # of the stored weights: float32, bfloat16, Q4_1, ...; where some are quantised, of the others
    quantization: str | None = None  # of `quantized_parameters`: fp8, int8, int4, mxfp4 or nvfp4
    quantized_parameters: int = 0  # of `parameters`
    embedding_parameters: int = 0  # of `parameters`: a table that is looked up and multiplied by nothing
    experts: int = 0  # routed experts of a layer; 0: dense
    experts_per_token: int = 0
    expert_parameters: int = 0  # of `parameters`: the routed experts of all layers
    kv_latent: int = 0  # latent attention (MLA): elements cached per token and layer instead of K and V
    sliding_window: int = 0  # tokens that `sliding_layers` look back; 0: no layer slides
    sliding_layers: int = 0
    mtp_layers: int = 0  # layers that predict the tokens after the next; not in `parameters`
    mlp_width: int = 0  # of the widest MLP, inner elements of one token, its experts together; 0: not known
    dequantizable: bool = False  # quantized, and `turbo serve` dequantizes it as it loads it
    unsupported: str = ""  # setting of the configuration that `turbo serve` does not support

    @property
    def active_parameters(self) -> int:
        """Weights that a token passes: of experts only its own."""
        idle = self.experts - self.experts_per_token
        return self.parameters - (self.expert_parameters * idle // self.experts if self.experts else 0)


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A LoRA adapter that fits the model."""

    name: str
    rank: int  # of its largest module
    revision: str | None = None  # resolved commit of a hub id; None for a path


@dataclass(frozen=True, slots=True)
class ModelInfo(JsonDocument):
    """What `turbo inspect MODEL` prints and writes as its pod's termination message."""

    shape: ModelShape
    digest: str  # sha256:... of the configuration and the weight files' names, sizes, headers and samples
    revision: str | None  # resolved commit of a hub id; None for a path
    weight_bytes: int  # size of the stored weights
    adapters: tuple[AdapterInfo, ...] = ()  # by their names
    adapter_modules: tuple[str, ...] = ()  # last parts of the names of all modules that they change

    def to_json(self) -> str:
        """Return one line of JSON; without adapters, quantized weights and unsupported settings the same as
        before there were any, so that what is stored of a model stays good.
        """
        document = dataclasses.asdict(self)
        for name in ("dequantizable", "unsupported"):
            if not document["shape"][name]:
                del document["shape"][name]
        for name in ("adapters", "adapter_modules"):
            if not document[name]:
                del document[name]
        return json.dumps(document, separators=(",", ":"), sort_keys=True)


@dataclass(frozen=True, slots=True)
class StepTime:
    """Median time of forward passes over `rows` requests of `context` cached and `tokens` new tokens each."""

    rows: int
    tokens: int
    context: int
    seconds: float


@dataclass(frozen=True, slots=True)
class LatencyHistogram:
    """How long the requests of a process took, since its start, in the buckets that have any. The lists have
    an item for each of these.
    """

    above: tuple[float, ...] = ()  # seconds
    up_to: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()  # requests

    def __post_init__(self) -> None:
        if not len(self.above) == len(self.up_to) == len(self.counts):
            raise ValueError("the lists of a histogram differ in length")


@dataclass(frozen=True, slots=True)
class Load(JsonDocument):
    """The body of `/load`: a few numbers that autoscaler, planner and router read every few seconds."""

    running_requests: int
    waiting_requests: int
    running_tokens: int  # prompt and answer tokens of running requests held in the KV cache
    waiting_tokens: int  # prompt tokens of waiting requests
    kv_cache_usage: float  # 0 to 1
    kv_cache_tokens: int  # capacity
    drafts: int  # verification passes with at least one drafted token, since start
    draft_tokens: int
    accepted_tokens: int
    generated_tokens: int
    guarantee: Guarantee
    draining: bool
    # Absent means unknown, of an older or another runtime.
    max_num_seqs: int | None = None  # requests decoded together at most
    prompts: int | None = None  # requests taken in, since start
    prompt_tokens: int | None = None  # of those
    finished_requests: int | None = None  # by an error, too, since start
    failed_requests: int | None = None  # of those, by an error of the engine
    step_times: tuple[StepTime, ...] | None = None  # of the start-up micro-benchmark; None: not made
    speedup: float | None = None  # tokens per second lately over those without drafts; None: not known
    generation_seconds: float | None = None  # of steps that generated tokens, since start
    baseline_generation_seconds: float | None = None  # that as many tokens would have taken without drafts
    audits: int | None = None  # answers replayed without speculation, since start
    audit_mismatches: int | None = None
    draft_version: str | None = None  # of the draft weights in use; empty: none
    draft_error: str | None = None  # why drafts are not those asked for; empty: they are
    captured: int | None = None  # prompts kept to learn from, since start
    decode_seconds: float | None = None  # from the first to the last token of each ended request, since start
    decode_tokens: int | None = None  # of those requests, all but their first
    load_seconds: float | None = None  # of the model at the start
    check_seconds: float | None = None  # of what the start measured then
    first_token_time: float | None = None  # epoch seconds of the first token of an answer
    time_to_first_token: LatencyHistogram | None = None  # from a request's arrival
    time_per_output_token: LatencyHistogram | None = None  # after the first, of complete answers


@dataclass(frozen=True, slots=True)
class MeasuredSpeedup:
    """Speeds over no drafts at so many requests at a time, where a draft was trained."""

    batch: int
    before: float  # from memory alone
    after: float  # with the draft


@dataclass(frozen=True, slots=True)
class DomainEvaluation(JsonDocument):
    """What a draft is worth on one kind of traffic, on prompts that it has not learned from."""

    domain: str
    acceptance_length: float | None = None  # None: no answer was left to measure it on
    acceptance_per_position: tuple[float, ...] = ()
    speedups: tuple[MeasuredSpeedup, ...] = ()

    def to_api(self) -> dict[str, Any]:
        """Return it as `spec.evaluation` of a TurboDraft has it."""
        length = self.acceptance_length
        return {
            "domain": self.domain,
            **({} if length is None else {"acceptanceLength": f"{length:.3f}"}),
            "acceptancePerPosition": [f"{share:.3f}" for share in self.acceptance_per_position],
            "speedups": [
                {
                    "batchSize": speedup.batch,
                    "suffixOnly": f"{speedup.before:.3f}",
                    "withDraft": f"{speedup.after:.3f}",
                }
                for speedup in self.speedups
            ],
        }


@dataclass(frozen=True, slots=True)
class DraftManifest(JsonDocument):
    """What `turbo distill` writes as its pod's termination message."""

    method: str  # heads or eagle3
    version: str
    digest: str  # of the artefact
    target_digest: str
    domain: str
    captured: int  # captured prompts that it learnt from
    worth: tuple[DomainEvaluation, ...]  # at most `MOST_DOMAINS` of them


@dataclass(frozen=True, slots=True)
class JobProgress(JsonDocument):
    """The body of `PROGRESS_PATH`: how far `turbo distill` or `turbo fetch` is."""

    stage: str
    done: int
    total: int
    unit: str
    left_seconds: float | None = None  # of the stage; None: not known yet
