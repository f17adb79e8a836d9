"""The package `speculators` reads a draft: does it take all of its tensors, and guess as ours does?

A program of its own under an interpreter of its own: `python speculators_worker.py DRAFT QUESTIONS ANSWERS`.
QUESTIONS (safetensors) has `streams` (n, 3 width) and `tokens` (n,), the token behind each place; ANSWERS
gets `logits` (n, V), the first guesses behind each.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from speculators import SpeculatorModel


def main(draft: str, questions: str, answers: str) -> None:
    model = SpeculatorModel.from_pretrained(draft)
    ours, taken = load_file(Path(draft) / "model.safetensors"), model.state_dict()
    wrong = [name for name, value in ours.items() if name not in taken or not torch.equal(value, taken[name])]
    left = [name for name in taken.keys() - ours.keys() if not name.startswith(("embed_tokens", "verifier_"))]
    if wrong or left:
        sys.exit(f"not all tensors are taken as they are: {wrong}, missing {left}")
    asked = load_file(questions)
    model.embed_tokens.weight.data.copy_(asked["embedding"])
    model = model.float().eval()
    model.layers[0].self_attn.config._attn_implementation = "eager"  # its own wants a mask of blocks
    count = len(asked["tokens"])
    with torch.inference_mode():
        hidden = model.fc(asked["streams"].float())[None]
        seen = torch.cat([model.embed_tokens(asked["tokens"])[None], hidden], -1)
        positions = torch.arange(count)[None]
        mask = torch.full((count, count), -torch.inf).triu(1)[None, None]
        out = model.layers[0](
            seen,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=model.rotary_emb(seen, positions),
        )
        logits = model.lm_head(model.norm(out))[0]
    save_file({"logits": logits.contiguous(), "d2t": model.d2t, "t2d": model.t2d}, answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
