"""What the runtime promises to whoever runs it: its command line, ports, paths, metric names and small JSON
documents.

The operator imports this module, what it imports, and `shapes`, and nothing else of the runtime, so they use
the standard library only. `RuntimeConfig.to_argv` is what the operator writes into a pod and
`RuntimeConfig.from_argv` what `turbo serve` parses: one table of flags, no drift.
Readers ignore unknown JSON keys and take a missing one for what its default says, or refuse the document: a
pod may be older or newer than its operator.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from turbo_runtime.documents import from_json

PORT = 8000
PORT_NAME = "http"

HEALTH_PATH = "/health"  # the server process and its engine are alive
READY_PATH = "/ready"  # the model is loaded, the engine finishes steps, and the pod is not draining
LOAD_PATH = "/load"  # `Load` as JSON
METRICS_PATH = "/metrics"
VERSION_PATH = "/version"

PERMANENT_ERROR = 3  # exit status of `turbo inspect` and `turbo distill` when trying again cannot help
TERMINATION_MESSAGE_BYTES = 4096  # Kubernetes' bound; `ModelFacts` and `DraftFacts` as JSON must fit

# Metrics that vLLM has keep vLLM's names and meanings, so that its dashboards and autoscalers read both
# engines alike.
NUM_REQUESTS_RUNNING = "vllm:num_requests_running"
NUM_REQUESTS_WAITING = "vllm:num_requests_waiting"
KV_CACHE_USAGE = "vllm:kv_cache_usage_perc"  # 0 to 1
PROMPT_TOKENS = "vllm:prompt_tokens"
GENERATION_TOKENS = "vllm:generation_tokens"
NUM_PREEMPTIONS = "vllm:num_preemptions"
REQUEST_SUCCESS = "vllm:request_success"  # label finished_reason
TIME_TO_FIRST_TOKEN = "vllm:time_to_first_token_seconds"  # noqa: S105
REQUEST_QUEUE_TIME = "vllm:request_queue_time_seconds"
INTER_TOKEN_LATENCY = "vllm:inter_token_latency_seconds"  # noqa: S105
REQUEST_TIME_PER_OUTPUT_TOKEN = "vllm:request_time_per_output_token_seconds"  # noqa: S105
E2E_REQUEST_LATENCY = "vllm:e2e_request_latency_seconds"
REQUEST_PROMPT_TOKENS = "vllm:request_prompt_tokens"  # histogram, as the next two
REQUEST_GENERATION_TOKENS = "vllm:request_generation_tokens"
ITERATION_TOKENS = "vllm:iteration_tokens_total"
PREFIX_CACHE_QUERIES = "vllm:prefix_cache_queries"  # in tokens
PREFIX_CACHE_HITS = "vllm:prefix_cache_hits"
SPEC_NUM_DRAFTS = "vllm:spec_decode_num_drafts"
SPEC_NUM_DRAFT_TOKENS = "vllm:spec_decode_num_draft_tokens"
SPEC_NUM_ACCEPTED_TOKENS = "vllm:spec_decode_num_accepted_tokens"
SPEC_NUM_ACCEPTED_TOKENS_PER_POS = "vllm:spec_decode_num_accepted_tokens_per_pos"  # label position
# Metrics that only Turbo has.
GUARANTEE_INFO = "turbo:guarantee_info"  # label guarantee: bytes | law; value 1
SPEEDUP = "turbo:speedup"  # lately, over no speculation; absent while it is not known
CHOSEN_DRAFTS = "turbo:chosen_drafts"  # label drafts: how many were verified for an answer in a step
HEARTBEAT_AGE = "turbo:engine_heartbeat_age_seconds"  # since the engine last finished a step or a rest
DRAFT_PROBLEM = "turbo:draft_problem"  # 1 while drafts are not what was asked for; /version says why
DRAFT_INFO = "turbo:draft_info"  # labels draft and version: of the draft weights in use; value 1
# Counters with the label draft: of requests that chose it, what SPEC_NUM_* count of all.
DRAFTS_BY_DRAFT = "turbo:drafts_by_draft"
DRAFT_TOKENS_BY_DRAFT = "turbo:draft_tokens_by_draft"
ACCEPTED_TOKENS_BY_DRAFT = "turbo:accepted_tokens_by_draft"
OWN_DRAFT_TOKENS_BY_DRAFT = "turbo:own_draft_tokens_by_draft"
OWN_ACCEPTED_TOKENS_BY_DRAFT = "turbo:own_accepted_tokens_by_draft"
STEP_SECONDS = "turbo:step_seconds"  # counters: of the engine's steps, and of them in the model
FORWARD_SECONDS = "turbo:forward_seconds"
# Counters: of steps that brought answers tokens, and what as many tokens would take without drafts, as probes
# have it. The latter's growth over the former's is the speed-up of any window.
ANSWERING_SECONDS = "turbo:answering_seconds"
PLAIN_ANSWERING_SECONDS = "turbo:plain_answering_seconds"
AUDITS = "turbo:audits"
AUDIT_MISMATCHES = "turbo:audit_mismatches"
CAPTURE_PROMPTS = "turbo:capture_prompts"  # label outcome: whether one was kept, and why not
CAPTURE_BYTES = "turbo:capture_bytes"  # of the folder that prompts are kept in
CAPTURE_PROBLEM = "turbo:capture_problem"  # 1 while prompts are not kept as was asked for; the log says why
# Labels. Every vllm: metric has the first, as in vLLM.
MODEL_LABEL = "model_name"
FINISHED_REASON_LABEL = "finished_reason"  # stop | length | abort | error
POSITION_LABEL = "position"
GUARANTEE_LABEL = "guarantee"
DRAFTS_LABEL = "drafts"
DRAFT_LABEL = "draft"  # default, or a name of the file that --drafts follows
VERSION_LABEL = "version"
OUTCOME_LABEL = (
    "outcome"  # kept | not_sampled | refused | ambiguous | unredacted | deleted | overrun | failed
)

Guarantee = Literal["bytes", "law"]
Speculation = Literal["auto", "suffix", "heads", "off"]
Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16"]


def _flag(default: object, help_text: str, **extra: object) -> Any:
    return field(default=default, metadata={"help": help_text, **extra})


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Everything `turbo serve` can be told; defaults live here and nowhere else."""

    model: str = field(metadata={"help": "a folder of safetensors, a .gguf file, or a Hugging Face hub id"})
    revision: str | None = _flag(None, "commit, tag or branch of a hub id", type=str)
    served_name: str | None = _flag(
        None, "name in the OpenAI API (default: the last part of MODEL)", type=str
    )
    host: str = _flag("0.0.0.0", "address to listen on")  # noqa: S104  a pod is reached by its own address
    port: int = _flag(PORT, "port to listen on; 0 takes a free one and prints it")
    device: Device = _flag("auto", "auto, cpu or cuda", choices=("auto", "cpu", "cuda"))  # noqa: RUF009
    dtype: DType = _flag(  # noqa: RUF009
        "auto", "auto, float32 or bfloat16", choices=("auto", "float32", "bfloat16")
    )
    threads: int | None = _flag(
        None,
        "CPU threads of the engine; fixed for the life of the process (default: allowed cores)",
        type=int,
    )
    max_model_len: int | None = _flag(
        None, "longest prompt plus answer, in tokens (default: the model's own)", type=int
    )
    max_running: int = _flag(32, "requests decoded together")
    max_waiting: int = _flag(256, "requests queued before 429")
    max_waiting_tokens: int = _flag(1 << 20, "tokens of their prompts queued before 429")
    max_step_tokens: int = _flag(512, "tokens of one forward pass, prefill and verification together")
    kv_cache_gib: float | None = _flag(
        None, "memory of the KV cache in GiB (default: what fits, at most 4)", type=float
    )
    speculation: Speculation = _flag(  # noqa: RUF009
        "auto",
        "what drafts: suffix, heads, auto for the surer of both, or off",
        choices=("auto", "suffix", "heads", "off"),
    )
    drafts: str | None = _flag(
        None,
        "a JSON file that names the drafts in use, followed while serving; it stands above --speculation. "
        "Of several, a request chooses with the header X-Turbo-Draft",
        type=str,
    )
    max_draft_tokens: int = _flag(8, "ceiling of drafted tokens per request and step")
    audit_share: float = _flag(
        0.01,
        "share of finished answers, 0 to 1, computed again without speculation while idle and compared; a "
        "hundredth costs little power, and finds what spoils one answer in ten within about a thousand",
    )
    api_keys: str | None = _flag(
        None, "a file of API keys, one a line, as name:key; read again when it changes", type=str
    )
    capture: str | None = _flag(
        None,
        "a JSON file that says which prompts are kept for drafts to learn from, and where; read again when "
        "it changes",
        type=str,
    )
    request_seconds: float = _flag(600.0, "longest time for the answers to one request, queueing included")
    step_timeout_seconds: float = _flag(
        60.0,
        "an engine that finishes no step for so long, once it is ready, is ended, and the server with it",
    )
    connection_seconds: float = _flag(
        300.0, "after about so long a connection is closed, so that clients spread; 0 keeps it"
    )
    drain_seconds: float = _flag(110.0, "after SIGTERM: longest wait for running requests")
    endpoint_seconds: float = _flag(5.0, "after SIGTERM: serve on while load balancers take the pod out")

    def to_argv(self) -> list[str]:
        """The arguments after `turbo serve`; fields at their default are left out, so that new ones change
        no old pod.
        """
        argv = [self.model]
        for spec in dataclasses.fields(self)[1:]:
            value = getattr(self, spec.name)
            if value != spec.default:
                argv.append(f"--{spec.name.replace('_', '-')}={value}")
        return argv

    @classmethod
    def parser(cls) -> argparse.ArgumentParser:
        """The command line of `turbo serve`, made from the fields."""
        parser = argparse.ArgumentParser(
            prog="turbo serve",
            description="Serve a model with lossless speculative decoding.",
            allow_abbrev=False,  # a prefix that is unique today may not be tomorrow
        )
        for spec in dataclasses.fields(cls):
            meta = spec.metadata
            if spec.name == "model":
                parser.add_argument("model", metavar="MODEL", help=meta["help"])
                continue
            parser.add_argument(
                f"--{spec.name.replace('_', '-')}",
                default=spec.default,
                type=meta.get("type", type(spec.default)),
                choices=meta.get("choices"),
                metavar=None if "choices" in meta else spec.name.rsplit("_", 1)[-1].upper(),
                help=f"{meta['help']}" + ("" if spec.default is None else f" (default: {spec.default})"),
            )
        return parser

    @classmethod
    def from_argv(cls, argv: Sequence[str]) -> RuntimeConfig:
        """Parse and check; exits with status 2 and one sentence that names the flag, as argparse does."""
        parser = cls.parser()
        config = cls(**vars(parser.parse_args(list(argv))))
        problem = config.problem()
        if problem:
            parser.error(problem)
        return config

    def problem(self) -> str | None:
        """What is wrong with the values, in one sentence that names the flag and the remedy, or None."""
        if not self.model or self.model.startswith("-"):
            return f"MODEL must be a path or a hub id, not {self.model!r}"
        if self.served_name == "":
            return "--served-name must not be empty; leave it out for the last part of MODEL"
        if self.api_keys == "":
            return "--api-keys must name a file; leave it out to ask for no keys"
        if self.capture == "":
            return "--capture must name a file; leave it out to keep no prompts"
        if not 0 <= self.port <= 65535:
            return f"--port must lie between 0 and 65535, not {self.port}"
        for name in ("max_running", "max_waiting", "max_waiting_tokens", "max_step_tokens"):
            if getattr(self, name) < 1:
                return f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}"
        for name in ("threads", "max_model_len", "kv_cache_gib"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                flag = f"--{name.replace('_', '-')}"
                return f"{flag} must be a number above 0, not {value}; leave it out for the default"
        if self.speculation == "heads" and self.drafts is None:
            return "--speculation=heads needs --drafts FILE, which names the folder of the heads"
        if not 0 <= self.max_draft_tokens <= 64:
            return f"--max-draft-tokens must lie between 0 and 64, not {self.max_draft_tokens}"
        if not 0 <= self.audit_share <= 1:
            return f"--audit-share must lie between 0 (no audit) and 1 (every answer), not {self.audit_share}"
        if not 0 < self.request_seconds < math.inf:
            return f"--request-seconds must be a number above 0, not {self.request_seconds}"
        if not 1 <= self.step_timeout_seconds < math.inf:  # an idle engine is heard of every half second
            return f"--step-timeout-seconds must be 1 or more, not {self.step_timeout_seconds}"
        for name in ("connection_seconds", "drain_seconds", "endpoint_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                return f"--{name.replace('_', '-')} must be 0 or more, not {getattr(self, name)}"
        return None


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

    @property
    def active_parameters(self) -> int:
        """Weights that a token passes: of experts only its own."""
        if not self.experts:
            return self.parameters
        return (
            self.parameters - self.expert_parameters * (self.experts - self.experts_per_token) // self.experts
        )

    @property
    def max_served(self) -> int:
        """Tokens of the longest request that `turbo serve` takes: its cache keeps no window, so a sliding one
        counts as the end.
        """
        return min(self.max_position, self.sliding_window) if self.sliding_layers else self.max_position


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What `turbo inspect MODEL` prints and writes as its pod's termination message: the shape, and which
    bytes it was read from.
    """

    shape: ModelShape
    digest: str  # sha256:... of the configuration and the weight files' names, sizes and headers
    revision: str | None  # resolved commit of a hub id; None for a path
    weight_bytes: int  # size of the stored weights

    def to_json(self) -> str:
        """One line of JSON, under `TERMINATION_MESSAGE_BYTES`."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelFacts:
        """Raises ValueError with a sentence when the text is no such document."""
        return from_json(cls, text)


@dataclass(frozen=True, slots=True)
class StepTime:
    """One measured point: a forward pass over `rows` requests of `context` cached tokens each, each with
    `tokens` new ones. The median of several, after warm-up.
    """

    rows: int
    tokens: int
    context: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Load:
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
    max_running: int | None = None  # requests decoded together at most
    prompts: int | None = None  # requests taken in, since start
    prompt_tokens: int | None = None  # of those
    step_times: tuple[StepTime, ...] | None = None  # of the start-up micro-benchmark; None: not made
    speedup: float | None = None  # tokens per second lately over those without drafts; None: not known
    answering_seconds: float | None = None  # of steps that brought answers tokens, since start
    plain_answering_seconds: float | None = None  # that as many tokens would have taken without drafts
    audits: int | None = None  # answers replayed without speculation, since start
    audit_mismatches: int | None = None
    draft_version: str | None = None  # of the draft weights in use; empty: none
    draft_problem: str | None = None  # why drafts are not those asked for; empty: they are
    captured: int | None = None  # prompts kept to learn from, since start

    @property
    def acceptance_length(self) -> float | None:
        """Tokens committed per verified draft, the bonus token included; None before the first draft."""
        return 1 + self.accepted_tokens / self.drafts if self.drafts else None

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Load:
        """Raises ValueError with a sentence when the text is no such document."""
        return from_json(cls, text)
