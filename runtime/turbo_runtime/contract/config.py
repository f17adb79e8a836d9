"""The command line of `turbo serve`: one table of flags, which the operator writes and the server parses."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from turbo_runtime.contract.endpoints import PORT

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
    served_model_name: str | None = _flag(
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
    max_num_seqs: int = _flag(32, "requests decoded together")
    max_queued_requests: int = _flag(256, "requests queued before 429")
    max_queued_prompt_tokens: int = _flag(1 << 20, "tokens of their prompts queued before 429")
    max_num_batched_tokens: int = _flag(512, "tokens of one forward pass, prefill and verification together")
    kv_cache_gib: float | None = _flag(
        None, "memory of the KV cache in GiB (default: what fits, at most 4)", type=float
    )
    speculation: Speculation = _flag(  # noqa: RUF009
        "auto",
        "what drafts: suffix, heads, auto for the surer of both, or off",
        choices=("auto", "suffix", "heads", "off"),
    )
    draft_config: str | None = _flag(
        None,
        "a JSON file that names the drafts in use, followed while serving; it stands above --speculation. "
        "Of several, a request chooses with the header X-Turbo-Draft",
        type=str,
    )
    max_draft_tokens: int = _flag(8, "ceiling of drafted tokens per request and step")
    audit_fraction: float = _flag(
        0.01,
        "share of finished answers, 0 to 1, computed again without speculation while idle and compared; a "
        "hundredth costs little power, and finds what spoils one answer in ten within about a thousand",
    )
    api_key_file: str | None = _flag(
        None, "a file of API keys, one a line, as name:key; read again when it changes", type=str
    )
    capture_config: str | None = _flag(
        None,
        "a JSON file that says which prompts are kept for drafts to learn from, and where; read again when "
        "it changes",
        type=str,
    )
    request_timeout_seconds: float = _flag(
        600.0, "longest time for the answers to one request, queueing included"
    )
    step_timeout_seconds: float = _flag(
        60.0,
        "an engine that finishes no step for so long, once it is ready, is ended, and the server with it",
    )
    connection_seconds: float = _flag(
        300.0, "after about so long a connection is closed, so that clients spread; 0 keeps it"
    )
    drain_timeout_seconds: float = _flag(110.0, "after SIGTERM: longest wait for running requests")
    shutdown_delay_seconds: float = _flag(
        5.0, "after SIGTERM: serve on while load balancers take the pod out"
    )

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
        if self.served_model_name == "":
            return "--served-model-name must not be empty; leave it out for the last part of MODEL"
        if self.api_key_file == "":
            return "--api-key-file must name a file; leave it out to ask for no keys"
        if self.capture_config == "":
            return "--capture must name a file; leave it out to keep no prompts"
        if not 0 <= self.port <= 65535:
            return f"--port must lie between 0 and 65535, not {self.port}"
        for name in (
            "max_num_seqs",
            "max_queued_requests",
            "max_queued_prompt_tokens",
            "max_num_batched_tokens",
        ):
            if getattr(self, name) < 1:
                return f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}"
        for name in ("threads", "max_model_len", "kv_cache_gib"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                flag = f"--{name.replace('_', '-')}"
                return f"{flag} must be a number above 0, not {value}; leave it out for the default"
        if self.speculation == "heads" and self.draft_config is None:
            return "--speculation=heads needs --drafts FILE, which names the folder of the heads"
        if not 0 <= self.max_draft_tokens <= 64:
            return f"--max-draft-tokens must lie between 0 and 64, not {self.max_draft_tokens}"
        if not 0 <= self.audit_fraction <= 1:
            return f"--audit-fraction must lie between 0 and 1, not {self.audit_fraction}"
        if not 0 < self.request_timeout_seconds < math.inf:
            return f"--request-timeout-seconds must be a number above 0, not {self.request_timeout_seconds}"
        if not 1 <= self.step_timeout_seconds < math.inf:  # an idle engine is heard of every half second
            return f"--step-timeout-seconds must be 1 or more, not {self.step_timeout_seconds}"
        for name in ("connection_seconds", "drain_timeout_seconds", "shutdown_delay_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                return f"--{name.replace('_', '-')} must be 0 or more, not {getattr(self, name)}"
        return None
