"""The command line of `turbo serve`: one table of flags, which the operator writes and the server parses."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from turbo_runtime.contract.endpoints import PORT

# a drafter by its name; auto: all; off: none
DraftMethod = Literal["auto", "off", "suffix", "heads", "eagle3", "model"]
Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16"]
GuaranteeChoice = Literal["auto", "bitwise", "distribution"]
MAX_ADAPTERS = 8  # of a model, as of `spec.adapters`
_ADAPTER = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.:/]*=.+")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What a step takes at most, where no flag says it."""

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int = 16  # tokens of a block of the KV cache


# On GPUs vLLM's, but for the block: torch's attention takes no smaller one.
CPU_LIMITS, GPU_LIMITS = BatchLimits(32, 512), BatchLimits(256, 2048, 256)


def _by_device(place: int) -> str:
    cpu, gpu = (dataclasses.astuple(limits)[place] for limits in (CPU_LIMITS, GPU_LIMITS))
    return f"{cpu}; {gpu} on a GPU"


# What holds of a value that is given, and what to say of one that it does not hold of.
_Check = tuple[Callable[[Any], bool], str]
_COUNT: _Check = (lambda value: value >= 1, "must be at least 1, not {}")
_COUNT_OR_DEFAULT: _Check = (_COUNT[0], f"{_COUNT[1]}; leave it out for the default")
_POSITIVE: _Check = (lambda value: 0 < value < math.inf, "must be a number above 0, not {}")
_POSITIVE_OR_DEFAULT: _Check = (_POSITIVE[0], f"{_POSITIVE[1]}; leave it out for the default")
_NOT_NEGATIVE: _Check = (lambda value: 0 <= value < math.inf, "must be 0 or more, not {}")
_DEVICE: _Check = (
    lambda value: re.fullmatch(r"auto|cpu|cuda(:\d{1,2})?", value) is not None,
    "must be auto, cpu, cuda or like cuda:1, not {}",
)
_SHARE: _Check = (lambda value: 0 < value <= 1, "must be above 0 and at most 1, not {}")
_AT_LEAST_1: _Check = (lambda value: 1 <= value < math.inf, "must be 1 or more, not {}")


def _up_to(most: int) -> _Check:
    return lambda value: 0 <= value <= most, f"must lie between 0 and {most}, not {{}}"


def _text(problem: str) -> _Check:
    return lambda value: value != "", problem


def _flag(default: object, help_text: str, check: _Check | None = None) -> Any:
    return field(default=default, metadata={"help": help_text, "check": check})


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Everything `turbo serve` can be told; defaults live here and nowhere else."""

    model: str = field(metadata={"help": "a folder of safetensors, a .gguf file, or a Hugging Face hub id"})
    revision: str | None = _flag(None, "commit, tag or branch of a hub id")
    served_model_name: str | None = _flag(
        None,
        "name in the OpenAI API (default: the last part of MODEL)",
        _text("must not be empty; leave it out for the last part of MODEL"),
    )
    host: str = _flag("0.0.0.0", "address to listen on")  # noqa: S104  a pod is reached by its own address
    port: int = _flag(PORT, "port to listen on; 0 takes a free one and prints it", _up_to(65535))
    device: Device = _flag("auto", "auto, cpu or cuda")  # noqa: RUF009
    dtype: DType = _flag("auto", "auto, float32 or bfloat16")  # noqa: RUF009
    lora_modules: tuple[str, ...] = _flag(
        (),
        "a LoRA adapter as NAME=PATH, served under NAME: a folder in the format of PEFT, or a hub id with @ "
        "and a revision behind it; several may follow, or the flag be repeated",
    )
    threads: int | None = _flag(
        None,
        "CPU threads of the engine and its ranks together; fixed for the life of the process (default: "
        "allowed cores)",
        _POSITIVE_OR_DEFAULT,
    )
    tensor_parallel_size: int = _flag(
        1, "processes (ranks) that share the model, each with a part of every layer; on GPUs one each", _COUNT
    )
    max_model_len: int | None = _flag(
        None, "longest prompt plus output, in tokens (default: the model's own)", _POSITIVE_OR_DEFAULT
    )
    max_num_seqs: int | None = _flag(
        None, f"requests decoded together (default: {_by_device(0)})", _COUNT_OR_DEFAULT
    )
    max_queued_requests: int = _flag(256, "requests queued before 429", _COUNT)
    max_queued_prompt_tokens: int = _flag(1 << 20, "tokens of their prompts queued before 429", _COUNT)
    max_num_batched_tokens: int | None = _flag(
        None,
        f"tokens of one forward pass, prefill and verification together (default: {_by_device(1)})",
        _COUNT_OR_DEFAULT,
    )
    kv_cache_gib: float | None = _flag(
        None,
        "memory of the KV cache in GiB, on each rank, as far as a GPU has it free (default: what fits; on a "
        "CPU, and on a GPU in float32 or with latent attention, at most 4)",
        _POSITIVE_OR_DEFAULT,
    )
    gpu_memory_utilization: float = _flag(
        0.9, "share of a GPU's memory, up to 1, for weights, KV cache and all that steps need", _SHARE
    )
    guarantee: GuaranteeChoice = _flag(  # noqa: RUF009
        "auto",
        "bitwise: end unless the same text can be promised to the byte; distribution: promise the "
        "distribution, and compute in the quickest way; auto: bitwise on CPUs where it can be promised",
    )
    speculation: DraftMethod = _flag(  # noqa: RUF009
        "auto",
        "what drafts: suffix, heads, eagle3, model, auto for the most confident of all there are, or off",
    )
    draft_config: str | None = _flag(
        None,
        "a JSON file that names the drafts in use, followed while serving; it stands above --speculation. "
        "Of several, a request chooses with the header X-Turbo-Draft",
    )
    draft_model: str | None = _flag(
        None,
        "what drafts for as long as the server runs: a smaller model of the same tokenizer, or an EAGLE-3 "
        "draft; a folder or a hub id",
        _text("must name a folder or a hub id; leave it out to draft without"),
    )
    draft_device: str | None = _flag(
        None,
        "device of a draft model: auto, cpu, cuda, or one of several GPUs, like cuda:1 (default: --device)",
        _DEVICE,
    )
    max_draft_tokens: int = _flag(32, "ceiling of drafted tokens per request and step", _up_to(64))
    audit_fraction: float = _flag(
        0.01,
        "share of finished outputs, 0 to 1, computed again without speculation while idle and compared; a "
        "hundredth costs little power, and finds what spoils one output in ten within about a thousand",
        _up_to(1),
    )
    api_key_file: str | None = _flag(
        None,
        "a file of API keys, one a line, as name:key; read again when it changes",
        _text("must name a file; leave it out to ask for no keys"),
    )
    capture_config: str | None = _flag(
        None,
        "a JSON file that says which prompts are kept for drafts to learn from, and where; read again when "
        "it changes",
        _text("must name a file; leave it out to keep no prompts"),
    )
    request_timeout_seconds: float = _flag(
        600.0, "longest time for the outputs of one request, queueing included", _POSITIVE
    )
    step_timeout_seconds: float = _flag(  # an idle engine is heard of every half second
        60.0,
        "an engine that finishes no step for so long, once it is ready, is ended, and the server with it",
        _AT_LEAST_1,
    )
    max_connections: int = _flag(
        1024, "open connections; beyond them idle ones are closed, and requests but probes get 503", _COUNT
    )
    connection_seconds: float = _flag(
        300.0, "after about so long a connection is closed, so that clients spread; 0 keeps it", _NOT_NEGATIVE
    )
    drain_timeout_seconds: float = _flag(
        110.0, "after SIGTERM: longest wait for running requests", _NOT_NEGATIVE
    )
    shutdown_delay_seconds: float = _flag(
        5.0, "after SIGTERM: serve on while load balancers take the pod out", _NOT_NEGATIVE
    )

    @property
    def api_name(self) -> str:
        """Name in the OpenAI API: as given, or the last part of a path or hub id, without `.gguf`."""
        return self.served_model_name or self.model.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")

    @property
    def adapters(self) -> dict[str, str]:
        """Adapters by name, and where each is, in the order of their numbers."""
        return dict(module.partition("=")[::2] for module in self.lora_modules)

    def limits(self, device: str) -> BatchLimits:
        """Return the limits of a step on `cpu` or `cuda`."""
        default = CPU_LIMITS if device == "cpu" else GPU_LIMITS
        return BatchLimits(
            self.max_num_seqs or default.max_num_seqs,
            self.max_num_batched_tokens or default.max_num_batched_tokens,
            default.block_size,
        )

    def to_argv(self, **defaults: object) -> list[str]:
        """The arguments after `turbo serve`, without defaults, so that a new field changes no old pod.
        `defaults`: those that were others in an earlier version, by name.
        """
        argv = [self.model]
        for spec in dataclasses.fields(self)[1:]:
            value = getattr(self, spec.name)
            if value != defaults.get(spec.name, spec.default):
                values = value if isinstance(value, tuple) else (value,)
                argv += [f"--{spec.name.replace('_', '-')}={each}" for each in values]
        return argv

    @classmethod
    def parser(cls) -> argparse.ArgumentParser:
        """The command line of `turbo serve`, made from the fields."""
        parser = argparse.ArgumentParser(
            prog="turbo serve",
            description="Serve a model with lossless speculative decoding.",
            allow_abbrev=False,  # a prefix that is unique today may not be tomorrow
        )
        model, *flags = dataclasses.fields(cls)
        parser.add_argument("model", metavar="MODEL", help=model.metadata["help"])
        hints = get_type_hints(cls)
        for spec in flags:
            hint = hints[spec.name]
            kind = hint if get_origin(hint) is Literal else (*get_args(hint), hint)[0]  # without None
            choices = get_args(kind) if get_origin(kind) is Literal else None
            if spec.default == ():
                parser.add_argument(
                    f"--{spec.name.replace('_', '-')}",
                    action="extend",
                    nargs="+",
                    default=[],
                    metavar="NAME=PATH",
                    help=spec.metadata["help"],
                )
                continue
            parser.add_argument(
                f"--{spec.name.replace('_', '-')}",
                default=spec.default,
                type=str if choices else kind,
                choices=choices,
                metavar=None if choices else spec.name.rsplit("_", 1)[-1].upper(),
                help=spec.metadata["help"] + ("" if spec.default is None else f" (default: {spec.default})"),
            )
        return parser

    @classmethod
    def from_argv(cls, argv: Sequence[str]) -> RuntimeConfig:
        """Parse and check; exits with status 2 and one sentence that names the flag, as argparse does."""
        parser = cls.parser()
        values: dict[str, Any] = vars(parser.parse_args(list(argv)))
        values["lora_modules"] = tuple(values["lora_modules"])
        config = cls(**values)
        if problem := config.problem():
            parser.error(problem)
        return config

    def problem(self) -> str | None:
        """What is wrong with the values, in one sentence that names the flag and the remedy, or None."""
        if not self.model or self.model.startswith("-"):
            return f"MODEL must be a path or a hub id, not {self.model!r}"
        for spec in dataclasses.fields(self)[1:]:
            value, check = getattr(self, spec.name), spec.metadata["check"]
            if value is not None and check is not None and not check[0](value):
                return f"--{spec.name.replace('_', '-')} {check[1].format(value)}"
        if problem := self._adapter_problem():
            return f"--lora-modules {problem}"
        return self._draft_problem()

    def _draft_problem(self) -> str | None:
        """What of the flags about drafts does not go together."""
        if self.draft_model is not None:
            if self.draft_config is not None:
                return (
                    "--draft-model is named in the file of --draft-config instead; leave one of the two out"
                )
            if self.speculation in ("suffix", "heads", "off"):
                return (
                    f"--speculation={self.speculation} does not use --draft-model; leave one of the two out"
                )
            if self.tensor_parallel_size > 1:
                return "--draft-model drafts only where --tensor-parallel-size is 1; leave one of the two out"
            return None
        if self.draft_config is not None:
            return None
        if self.speculation in ("heads", "eagle3", "model"):
            other = "" if self.speculation == "heads" else ", or --draft-model"
            return (
                f"--speculation={self.speculation} needs --draft-config FILE, which names the draft's "
                f"folder{other}"
            )
        if self.draft_device is not None:
            return "--draft-device needs --draft-model, or --draft-config FILE, which names the draft model"
        return None

    def _adapter_problem(self) -> str | None:
        """What is wrong with the adapters, as the end of a sentence."""
        names = [module.partition("=")[0] for module in self.lora_modules]
        for module, name in zip(self.lora_modules, names, strict=True):
            if not _ADAPTER.fullmatch(module):
                return f"must be NAME=PATH, with letters, digits and - _ . : / in NAME, not {module!r}"
            if name == self.api_name or names.count(name) > 1:
                return f"must give each adapter a name of its own: {name!r} is another's, or the model's"
        if len(names) > MAX_ADAPTERS:
            return f"may name {MAX_ADAPTERS} adapters, not {len(names)}: serve the others in another process"
        if names and self.tensor_parallel_size > 1:
            return "needs --tensor-parallel-size=1: adapters are not cut up"
        return None
