"""vLLM on a GPU with random weights and no speculation: one line of JSON in, tokens per second of decoding by
the number of requests out, on the last line.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any


def main() -> None:
    """Measure as `gpu.rates` does."""
    os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    from vllm import LLM, SamplingParams

    order = json.loads(sys.stdin.read())
    tokens: int = order["tokens"]
    counts = {int(count): prompts for count, prompts in order["prompts"].items()}
    engine: Any = LLM(
        order["model"],
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=max(len(prompt) for prompts in counts.values() for prompt in prompts) + tokens,
        max_num_seqs=max(counts),
        enable_prefix_caching=False,
    )

    def seconds(prompts: list[list[int]], length: int) -> float:
        params = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, detokenize=False)
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        start_time = time.perf_counter()
        engine.generate(asked, params, use_tqdm=False)
        return time.perf_counter() - start_time

    found = {}
    for count, prompts in counts.items():
        seconds(prompts, 2)  # a warm-up
        first, whole = (
            statistics.median(seconds(prompts, length) for _ in range(order["runs"]))
            for length in (1, tokens)
        )
        found[count] = count * (tokens - 1) / (whole - first)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
