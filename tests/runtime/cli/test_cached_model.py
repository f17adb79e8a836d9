"""A model of the hub: all its parts are of one commit, and once it is in the cache, no hub is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from turbo_dev import hub
from turbo_runtime.model_files.inspector import inspect_model

MODEL = "acme/served"
SIZES = LlamaConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=61,
    max_position_embeddings=256,
)
ENGINE = f"""
import queue, sys, tempfile
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.engine.process import run_engine
from turbo_runtime.messages import Shutdown
for _ in sys.stdin:
    inbox, outbox = queue.Queue(), queue.Queue()
    inbox.put(Shutdown())
    config = RuntimeConfig({MODEL!r}, device="cpu", dtype="float32", threads=1, max_num_seqs=1)
    with tempfile.TemporaryDirectory() as folder:
        run_engine(config, inbox, outbox, folder, lambda: None)
    print(outbox.get(), flush=True)
"""


def test_all_parts_are_of_one_commit_and_a_cached_model_starts_while_the_hub_is_away(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "models" / MODEL
    LlamaForCausalLM(SIZES).save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(61)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    digest = inspect_model(str(folder)).digest
    with hub.serve(tmp_path / "models", tmp_path / "log") as served:
        environment = os.environ | {
            "HF_ENDPOINT": served.url,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        environment.pop("HF_HUB_OFFLINE", None)
        pipe, command = subprocess.PIPE, [sys.executable, "-c", ENGINE]
        engine = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
        request.addfinalizer(engine.kill)
        assert engine.stdin is not None
        assert engine.stdout is not None
        print("with the hub", file=engine.stdin, flush=True)
        assert digest in engine.stdout.readline()
        first, *others = [answer["path"] for answer in served.answers()]
        assert first == f"/api/models/{MODEL}"  # a branch, which may move afterwards
        assert [path for path in others if hub.commit(folder) not in path] == []
    torch.manual_seed(1)
    LlamaForCausalLM(SIZES).save_pretrained(folder)  # what nobody can ask for any more
    with engine:
        print("without it", file=engine.stdin, flush=True)
        assert digest in engine.stdout.readline()
