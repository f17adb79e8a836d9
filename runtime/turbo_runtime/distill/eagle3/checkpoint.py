"""The artefact on disk, as the package `speculators` defines it and vLLM and SGLang load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from turbo_runtime.atomic_write import write_whole, write_whole_by
from turbo_runtime.distill.eagle3.layer import Eagle3

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
FORMAT_VERSION = "0.9.0"  # of `speculators`, that this was checked with


def save_eagle3(
    folder: Path,
    draft: Eagle3,
    *,
    depth: int,
    layers: tuple[int, ...],
    verifier: Mapping[str, Any],
    turbo: Mapping[str, Any],
) -> None:
    """Write an artefact, its configuration last. `depth`: tokens to draft; `layers` of the target whose input
    it sees; `verifier`: name or path and architectures of the target; `turbo`: facts that only we read.
    """
    layer = draft.config.to_diff_dict()
    layer["model_type"] = draft.config.model_type
    document = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": FORMAT_VERSION,
        "draft_vocab_size": len(draft.vocabulary),
        "norm_before_residual": False,
        "target_hidden_size": draft.config.hidden_size,
        "eagle_aux_hidden_state_layer_ids": list(layers),
        "transformer_layer_config": layer,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": depth}],
            "verifier": dict(verifier),
        },
        "turbo": dict(turbo),
    }
    tensors = _tensors(draft)
    write_whole_by(folder / WEIGHTS_FILE, lambda scratch: save_file(tensors, scratch, {"format": "pt"}))
    write_whole(folder / CONFIG_FILE, json.dumps(document, indent=2) + "\n")


def _tensors(draft: Eagle3) -> dict[str, Tensor]:
    """In the target's dtype. Embeddings are not among them: engines share the target's."""
    dtype = draft.embedding.dtype
    tensors = {name: value.detach().to(dtype).cpu() for name, value in draft.state_dict().items()}
    vocabulary = draft.vocabulary.cpu()
    allowed = torch.zeros(len(draft.embedding), dtype=torch.bool)
    allowed[vocabulary] = True
    tensors["lm_head.weight"] = draft.output.to(dtype).cpu()
    tensors["d2t"] = vocabulary - torch.arange(len(vocabulary))  # added to a drafted id
    tensors["t2d"] = allowed
    return {name: value.contiguous() for name, value in tensors.items()}
