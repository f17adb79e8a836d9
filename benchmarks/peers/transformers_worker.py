"""transformers' `generate`, plain and with prompt lookup; one request at a time, as prompt lookup has it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from peers.worker import Answerer, Job, Setup, serve, timed

LOOKUP_TOKENS = 10  # what its documentation takes


def load(setup: Setup) -> Answerer:
    """The model, in float32 unless told otherwise, with the attention that transformers takes by default."""
    torch.set_num_threads(setup.threads)
    dtype = getattr(torch, setup.settings.get("dtype", "float32"))
    model: Any = AutoModelForCausalLM.from_pretrained(setup.model, dtype=dtype).eval()

    def answer(job: Job, prompts: list[list[int]]) -> list[list[int]]:
        lookup = {"prompt_lookup_num_tokens": LOOKUP_TOKENS} if job.variant == "lookup" else {}
        answers = []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                found = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=job.max_tokens,
                    eos_token_id=job.stop,
                    pad_token_id=job.stop[0],
                    **lookup,
                )
            answers.append(found[0, len(prompt) :].tolist())
        return answers

    instructions = torch.backends.cpu.get_cpu_capability()
    return lambda job: timed(job, lambda prompts: answer(job, prompts), computed_with=instructions)


if __name__ == "__main__":
    serve(load)
