"""The Turbo engine on a GPU: tokens per second without speculation, against the bound of the memory.

A model of the shape of an 8B, with random weights made on the device. The bound is what it takes to read the
weights and the keys and values of a step, at the bandwidth of a copy on this card. Steps as graphs and
without, under the guarantee `distribution` and under `bitwise` where the start-up check proves it; and the
same by vLLM, where it is installed.

Rates are of decoding: the time of a run less that of one which ends at the first token.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import run
from harness import Bar, arguments, finish

from turbo_dev.progress import say, step
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.messages import GenerationRequest, SamplingParams

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from turbo_runtime.models.runner import ModelRunner

BARS = (
    Bar("of_bound_1", at_least=0.6),
    Bar("of_vllm_1", at_least=1 / 1.3),
    Bar("of_vllm_8", at_least=1 / 1.3),
    Bar("of_vllm_64", at_least=1 / 1.3),
)
COPY_BYTES, COPIES = 1 << 30, 10
RUNS = 3  # of each rate, whose median counts
CHECK_SECONDS = 300.0  # for `bitwise`: a server has 20
WORKER = Path(__file__).parent / "peers" / "vllm_gpu_worker.py"
NO_GPU = "there is no CUDA device here: run this on a machine with an NVIDIA GPU"


@dataclass(frozen=True)
class Case:
    """A model, and what is asked of it."""

    config: dict[str, int]
    requests: tuple[int, ...] = (1, 8, 64)
    prompt_tokens: int = 128
    output_tokens: int = 256

    @property
    def length(self) -> int:
        """Of a sequence."""
        return self.prompt_tokens + self.output_tokens

    def save(self, folder: Path) -> None:
        """Write `config.json`."""
        from transformers import LlamaConfig

        LlamaConfig(**self.config, architectures=["LlamaForCausalLM"], dtype="bfloat16").save_pretrained(
            folder
        )


EIGHT_BILLION = Case(
    {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    }
)
QUICK = Case(
    {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 512,
    },
    requests=(1, 4),
    prompt_tokens=12,
    output_tokens=6,
)

Build = Callable[["RuntimeConfig", "PreTrainedModel"], "ModelRunner"]


@dataclass
class Rates:
    """What one way to run gave, by the number of requests."""

    name: str
    tokens_per_second: dict[int, float] = field(default_factory=dict)


def main() -> int:
    """Run on the first GPU; exit status by the bars."""
    import torch

    options = parse()
    if not torch.cuda.is_available():
        sys.exit(NO_GPU)
    case = QUICK if options.quick else EIGHT_BILLION
    device = torch.device("cuda", 0)
    vllm = None
    if importlib.util.find_spec("vllm"):
        with step("vLLM, in a process of its own", "3 min"):
            vllm = by_vllm(case)
    with step("make the model", "1 min"):
        runner = build(case, device, torch.bfloat16, _build_runner)
    with step("copy memory", "1 s"):
        bandwidth = copy_bandwidth(device, COPY_BYTES)
    figures, rows = compare(case, runner, bandwidth, vllm)
    figures["copy_gb_per_second"] = round(bandwidth / 1e9, 1)
    rows = [{**row, **card(device)} for row in rows]
    bars = [bar for bar in BARS if bar.figure in figures and not options.quick]
    return finish("gpu", figures, rows, bars, options)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--quick", action="store_true", help="a tiny model: shows that all of it runs")
    return parser.parse_args(argv)


def card(device: torch.device) -> dict[str, str]:
    """What the figures belong to."""
    import torch

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={device.index or 0}"]
    told = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "card": torch.cuda.get_device_name(device),
        "driver": told or "unknown",
        "cuda": torch.version.cuda or "none",
        "torch": torch.__version__,
    }


def build(case: Case, device: torch.device, dtype: torch.dtype, make: Build) -> ModelRunner:
    """A runner of random weights, which are made where they stay."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from turbo_runtime.models.attention.metadata import IMPLEMENTATION, register

    register()
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            LlamaConfig(**case.config), attn_implementation=IMPLEMENTATION, dtype=dtype
        )
    most = max(case.requests)
    config = RuntimeConfig("random", max_model_len=case.length, max_num_seqs=most)
    return make(config, model.eval().requires_grad_(False))


def _build_runner(config: RuntimeConfig, model: PreTrainedModel) -> ModelRunner:
    from turbo_runtime.engine.startup.sizing import build_runner

    return build_runner(config, model, None)


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second that a copy within the device reads and writes."""
    import torch

    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = []
    for _ in range(COPIES):
        _wait(device)
        start_time = time.perf_counter()
        target.copy_(source)
        _wait(device)
        seconds.append(time.perf_counter() - start_time)
    return 2 * size / statistics.median(seconds)


def bytes_of_step(case: Case, runner: ModelRunner, requests: int) -> int:
    """What a step for so many requests must read at least: all weights but the embedding's, and the keys and
    values of their contexts, half way through their outputs.
    """
    from turbo_runtime.models.runner import kv_bytes_per_block

    products = runner.decoder.products()
    weights = sum(one.heads * one.shape[0] * one.shape[1] * one.dtype.itemsize for one in products)
    context = case.prompt_tokens + case.output_tokens // 2
    return weights + requests * context * kv_bytes_per_block(runner.config, runner.dtype, 1)


def compare(
    case: Case, runner: ModelRunner, bandwidth: float, vllm: Rates | None
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Figures and rows of all ways to run."""
    from turbo_runtime.engine.startup.invariance_check import check_batch_invariance
    from turbo_runtime.models.cuda_runner import CudaModelRunner

    assert isinstance(runner, CudaModelRunner)
    tokens = RuntimeConfig("random").limits("cuda").max_num_batched_tokens
    ways = [vllm] if vllm else []
    with step("distribution", "2 min"):
        check_batch_invariance(runner, tokens, wanted="distribution")
        ways.append(rates("graphs", case, runner))
        runner.release_graphs()
        ways.append(rates("no graphs", case, runner))
    with step("bitwise", "2 min"):
        report = check_batch_invariance(runner, tokens, CHECK_SECONDS, wanted="bitwise")
        if report.guarantee == "bitwise":
            ways.append(rates("bitwise", case, runner))
        else:
            say(f"   bitwise is not proven here: {report.reason}")
    figures: dict[str, float] = {}
    rows = []
    for count in case.requests:
        bound = count * bandwidth / bytes_of_step(case, runner, count)
        found = {way.name: way.tokens_per_second[count] for way in ways}
        figures |= {f"{name.replace(' ', '_')}_{count}": round(rate, 1) for name, rate in found.items()}
        figures[f"of_bound_{count}"] = round(found["graphs"] / bound, 3)
        if vllm:
            figures[f"of_vllm_{count}"] = round(found["graphs"] / found["vllm"], 3)
        if "bitwise" in found:
            figures[f"bitwise_of_graphs_{count}"] = round(found["bitwise"] / found["graphs"], 3)
        rows += [
            {"requests": count, "way": name, "tokens_per_second": rate, "bound": bound, "share": rate / bound}
            for name, rate in found.items()
        ]
    return figures, rows


def rates(name: str, case: Case, runner: ModelRunner) -> Rates:
    """Tokens a second of decoding, without drafts."""
    found = Rates(name)
    for count in case.requests:
        _seconds(case, runner, count, 2)  # a warm-up
        first, whole = (
            statistics.median(_seconds(case, runner, count, tokens) for _ in range(RUNS))
            for tokens in (1, case.output_tokens)
        )
        found.tokens_per_second[count] = count * (case.output_tokens - 1) / max(whole - first, 1e-9)
        say(f"   {name}, {count} requests: {found.tokens_per_second[count]:.1f} tokens/s")
    return found


def _seconds(case: Case, runner: ModelRunner, count: int, tokens: int) -> float:
    """Of a run of `count` requests together, each for so many tokens, in an engine that knows nothing."""
    from turbo_runtime.drafters.proposer import Proposer
    from turbo_runtime.engine.loop import Engine
    from turbo_runtime.engine.scheduler import Scheduler
    from turbo_runtime.kv_cache.block_pool import BlockPool

    limits = RuntimeConfig("random").limits("cuda")
    scheduler = Scheduler(
        BlockPool(runner.pool.blocks, block_size=runner.pool.block_size),
        max_num_seqs=count,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_draft_tokens=0,
        max_length=case.length,
        shared_tile=runner.shared_tile,
    )
    engine = Engine(runner, scheduler, Proposer())
    params = SamplingParams(temperature=0.0, max_tokens=tokens, draft_method="off")
    requests = [
        GenerationRequest(str(n), tuple(prompt), params) for n, prompt in enumerate(prompts(case, count))
    ]
    start_time = time.perf_counter()
    answers = run(engine, requests, count)
    seconds = time.perf_counter() - start_time
    assert all(len(answer.tokens) == tokens for answer in answers.values())
    return seconds


def prompts(case: Case, count: int) -> list[list[int]]:
    """Prompts that begin apart, so that none is read from a prefix cache."""
    size = case.config["vocab_size"]
    return [[(n + 31 * i * (n + 1)) % size for i in range(case.prompt_tokens)] for n in range(1, count + 1)]


def by_vllm(case: Case) -> Rates:
    """The same by vLLM, in its own process, which gives its memory back."""
    with tempfile.TemporaryDirectory() as folder:
        case.save(Path(folder))
        asked = {str(count): prompts(case, count) for count in case.requests}
        order = {"model": folder, "prompts": asked, "tokens": case.output_tokens, "runs": RUNS}
        command = [sys.executable, str(WORKER)]
        told = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, check=False)
    if told.returncode:
        sys.exit(f"vLLM failed:\n{told.stderr[-4000:]}")
    found = json.loads(told.stdout.splitlines()[-1])
    return Rates("vllm", {int(count): rate for count, rate in found.items()})


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
