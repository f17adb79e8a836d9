"""EAGLE-3 layers that the model has taught itself (`turbo distill --method eagle3`): read by the package
`speculators`, served by vLLM on CPU.

The package must take all tensors, and guess what our own layer guesses of the same features. vLLM answers the
prompts held out, greedily and one at a time, plain and with the layer: its own counters tell the acceptance
length, beside that of our evaluation. All in float32; trained on all cores, measured on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness import HERE, Bar, arguments, finish
from peers.contest import VLLM_PLAIN, Competitor, Contest, Environment
from peers.weights import float32_folder
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from turbo_dev.model import ensure
from turbo_dev.progress import say, step
from turbo_runtime.distill.eagle3 import STREAMS, Eagle3

BARS = (
    Bar("largest_difference", at_most=1e-3),
    Bar("vllm_off_by", at_most=0.10),
    Bar("differing", at_most=0),
)
SPECULATORS = Environment("speculators-0.9.0", ("speculators==0.9.0",), ("torch==2.13.0",), "5 min, 2 GB")
DATA = HERE / "data" / "distill"
DOMAINS = ("json", "maths", "support")
PLACES, DEPTH = 64, 4
ANSWER_TOKENS, CONTEXT, WARM = 128, 1024, 4
ROUNDS, EVERY = 3, 6  # speeds are taken of every sixth prompt held out, other ones each time


def main() -> int:
    """Exit status by the bars."""
    options = _options()
    target = float32_folder(ensure())
    rows, figures = [], dict[str, float]()
    with tempfile.TemporaryDirectory(prefix="turbo-eagle3-") as scratch:
        work = options.work or Path(scratch)
        for domain in options.domains:
            source: list[str | Path] = ["--prompts", DATA / f"{domain}.jsonl"]
            source = ["--answers", options.answers / domain] if options.answers else source
            draft = _distilled(target, work / domain, domain, options.epochs, source)
            row: dict[str, Any] = {"domain": domain, "difference": _difference(draft, target, Path(scratch))}
            record = json.loads((draft / "evaluation.json").read_text(encoding="utf-8"))
            row["training_minutes"] = record["seconds"]["training"] / 60
            row["evaluated"] = record["domains"][domain]["whole"]["acceptance_length"]
            row |= _served(draft, target, options.threads, Path(scratch))
            row["off_by"] = abs(row["vllm"] / row["evaluated"] - 1)
            say(f"   {domain}: {row}")
            rows.append(row)
            figures |= {f"{domain}_{name}": round(row[name], 3) for name in ("evaluated", "vllm", "speed")}
    figures["largest_difference"] = max(row["difference"] for row in rows)
    figures["vllm_off_by"] = round(max(row["off_by"] for row in rows), 3)
    figures["differing"] = sum(row["differing"] for row in rows)
    return finish("eagle3", figures, rows, BARS, options)


def _options() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.set_defaults(threads=1)
    parser.add_argument("--domains", nargs="+", default=DOMAINS, help=f"default: {' '.join(DOMAINS)}")
    parser.add_argument("--epochs", type=int, help="of the training (default: those of turbo distill)")
    parser.add_argument(
        "--answers", type=Path, help="learn from answers kept here (the --work of distill), ask for none"
    )
    parser.add_argument("--work", type=Path, help="keep drafts here, and take up what is there already")
    return parser.parse_args()


def _distilled(
    target: Path, out: Path, domain: str, epochs: int | None, source: Sequence[str | Path]
) -> Path:
    """As it is typed."""
    command = [sys.executable, "-m", "turbo_cli", "distill", str(target), "--method", "eagle3"]
    command += [*map(str, source), "--domain", domain, "--out", str(out)]
    command += ["--keep-answers", "--dtype", "float32", "--device", "cpu", "--depth", str(DEPTH)]
    command += ["--max-tokens", str(ANSWER_TOKENS), "--max-model-len", str(CONTEXT)]
    command += [] if epochs is None else ["--epochs", str(epochs)]
    with step(f"distill {domain}", "15 min"):
        subprocess.run(command, check=True)
    return out


def _difference(draft: Path, target: Path, scratch: Path) -> float:
    """The largest one of a logit between our layer and the package's, over the spread of logits; the package
    ends this program where it does not take all tensors.
    """
    embedding = _embedding(target)
    lots = torch.Generator().manual_seed(0)
    tokens = torch.randint(len(embedding), (PLACES,), generator=lots)
    streams = torch.randn(PLACES, STREAMS * embedding.shape[1], generator=lots)
    questions, answers = scratch / "questions.safetensors", scratch / "answers.safetensors"
    save_file({"streams": streams, "tokens": tokens, "embedding": embedding}, questions)
    worker = HERE / "peers" / "speculators_worker.py"
    subprocess.run([SPECULATORS.python(), worker, draft, questions, answers], check=True)
    told = load_file(answers)
    config = json.loads((draft / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(draft / "model.safetensors")
    vocabulary = torch.arange(config["draft_vocab_size"]) + tensors.pop("d2t")
    output = tensors.pop("lm_head.weight")
    assert torch.equal(tensors.pop("t2d").nonzero().squeeze(1), vocabulary)
    ours = Eagle3(LlamaConfig(**config["transformer_layer_config"]), embedding, output, vocabulary)
    ours.load_state_dict(tensors)
    with torch.inference_mode():
        logits = ours(streams, tokens, tokens[:, None])[:, 0]
    return float((logits - told["logits"]).abs().max() / logits.std())


def _embedding(target: Path) -> torch.Tensor:
    for file in sorted(target.glob("*.safetensors")):
        tensors = load_file(file)
        if "model.embed_tokens.weight" in tensors:
            return tensors["model.embed_tokens.weight"].float()
    raise FileNotFoundError(f"{target} holds no embedding")


def _served(draft: Path, target: Path, threads: int, logs: Path) -> dict[str, Any]:
    """vLLM with the layer: what of its drafts is accepted over all prompts held out, and some answers' speed
    over that of a plain one.
    """
    lines = (draft / "answers.jsonl").read_text(encoding="utf-8").split("\n")
    kept = [json.loads(line) for line in lines if line]
    held = [row["prompt"] for row in kept if row["part"] == "test"]
    warm = [row["prompt"] for row in kept if row["part"] == "training"][:WARM]
    config = {"method": "eagle3", "model": str(draft), "num_speculative_tokens": DEPTH}
    layer = Competitor(
        "vLLM eagle3",
        "vllm_worker",
        VLLM_PLAIN.environment,
        "folder",
        settings={"speculative_config": config, "disable_log_stats": False},
    )
    stop = json.loads((target / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    limits = (ANSWER_TOKENS, stop if isinstance(stop, list) else [stop])
    contest = Contest({"folder": target}, threads, 1, CONTEXT, logs)
    try:
        contest.begin(layer, warm, limits)
        every = contest.answer(layer, held, 1, limits)
        ratios, differing = [], 0
        for number in range(ROUNDS):
            some = held[number::EVERY]
            for competitor in (VLLM_PLAIN, layer):
                contest.begin(competitor, warm, limits)
            plain = contest.answer(VLLM_PLAIN, some, 1, limits)
            drafted = contest.answer(layer, some, 1, limits)
            ratios.append(plain.seconds / drafted.seconds)
            pairs = zip(plain.answers, drafted.answers, strict=True)
            differing += sum(one != other for one, other in pairs)
    finally:
        contest.close()
    return {
        "prompts": len(held),
        "vllm": 1 + every.accepted / every.drafts,
        "speed": statistics.median(ratios),
        "differing": differing,
    }


if __name__ == "__main__":
    raise SystemExit(main())
