"""vLLM's own parser takes the arguments of plans of many kinds, and refuses what is none of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
from peers.contest import VLLM

from turbo_dev import sizes
from turbo_dev.paths import cache_root
from turbo_dev.vllm_canaries import FIRST
from turbo_operator.api import TurboDeployment, parse
from turbo_operator.catalog import catalog, shapes
from turbo_operator.planner import PlannerInputs, plan
from turbo_operator.render import vllm
from turbo_runtime.contract.documents import AdapterInfo, ModelInfo

IS_INSTALLED = (cache_root() / "peers" / VLLM.name / "complete").exists()
pytestmark = pytest.mark.skipif(
    not (sizes.IS_FULL or IS_INSTALLED), reason="installs 2 GB of vLLM: make test-full or a benchmark does"
)

MODELS = (
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-30B-A3B",
    "meta-llama/Llama-3.1-8B-Instruct",
    "nvidia/Llama-3.1-70B-Instruct-FP8",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
    "deepseek-ai/DeepSeek-R1",
    "openai/gpt-oss-120b",
)
DRAFT = {"uri": "hf://acme/draft"}
SPECS: tuple[dict[str, Any], ...] = (
    {},
    {"speculation": {"mode": "Required", "method": "NGram"}},
    {"speculation": {"mode": "Required", "method": "Suffix"}},
    {"speculation": {"mode": "Required", "method": "EAGLE3", "draftModel": DRAFT}},
    {"speculation": {"method": "EAGLE3", "draftModel": DRAFT}, "workload": {"requestsPerSecond": "2"}},
    {"speculation": {"method": "EAGLE3", "draftRef": {"name": "mine"}}},
    {"parallelism": {"tensor": 8}, "engine": {"type": "VLLM", "args": ["--kv-cache-dtype=fp8"]}},
    {"parallelism": {"tensor": 8, "pipeline": 2}},
    {"parallelism": {"tensor": 2, "data": 4, "expert": True}},
    {"parallelism": {"data": 8}},
    {"adapters": [{"name": "a/b", "uri": "pvc://tuned/a,b=c"}, {"name": "sql", "uri": "hf://acme/sql"}]},
    {"engine": {"type": "VLLM", "args": ["--enforce-eager", "--max-loras", "2"]}, "drain": {"timeout": "1m"}},
)
PARSER = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

for line in sys.stdin:
    parsed = make_arg_parser(FlexibleArgumentParser(exit_on_error=False)).parse_args(json.loads(line))
    validate_parsed_serve_args(parsed)
    names = "model_tag tensor_parallel_size max_model_len speculative_config kv_cache_memory_bytes"
    names += " pipeline_parallel_size nnodes node_rank headless data_parallel_size enable_expert_parallel"
    lora = [parsed.enable_lora, parsed.max_loras, parsed.max_lora_rank, parsed.lora_target_modules]
    lora.append([[it.name, it.path] for it in parsed.lora_modules or ()])
    print(json.dumps([lora, *(getattr(parsed, name) for name in names.split())]))
"""


PLAIN = [False, 1, 16, None, []]  # without adapters


def parsed(argvs: Sequence[Sequence[str]]) -> subprocess.CompletedProcess[str]:
    lines = "".join(f"{json.dumps(argv)}\n" for argv in argvs)
    command = [VLLM.python(), "-c", PARSER]
    return subprocess.run(command, input=lines, capture_output=True, text=True, check=False, timeout=300)


def deployments() -> list[TurboDeployment]:
    objects = []
    for hub_id, spec in product(MODELS, SPECS):
        model = {"uri": f"hf://{hub_id}", "maxModelLen": 4096}
        meta = {"name": "chat", "namespace": "team", "uid": "u"}
        body = {"apiVersion": "serving.turbo.dev/v1alpha1", "kind": "TurboDeployment", "metadata": meta}
        objects.append(parse({**body, "spec": {"model": model, **spec}}))
    return objects


def test_vllms_own_parser_takes_the_arguments_of_fifty_plans() -> None:
    rendered = []
    for td in deployments():
        shape = shapes.shipped(td.spec.model.hub_id)
        assert shape is not None
        draft = FIRST if td.spec.speculation.draft_ref is not None else None
        trained = draft.acceptance if draft is not None else None
        inputs = PlannerInputs(td.spec, shape, catalog(), None, None, {}, None, trained=trained)
        choice = plan(inputs, 0.0).choice
        if choice is not None:
            adapters = tuple(AdapterInfo(it.name, 40, "beef") for it in td.spec.adapters or ())
            facts = ModelInfo(shape, "sha256:ab", "c0ffee", 1, adapters, ("k_proj", "q_proj"))
            rendered.append((choice, 0, vllm.arguments(td, choice, facts, draft)))
            if choice.nodes > 1:  # as Kubernetes fills in what LeaderWorkerSet sets
                argv = vllm.arguments(td, choice, facts, draft, is_worker=True)
                last = choice.nodes - 1
                filled = [argument.replace("$(LWS_WORKER_INDEX)", str(last)) for argument in argv]
                rendered.append((choice, last, filled))
    assert len(rendered) >= 50
    assert {"NGram", "Suffix", "EAGLE3", "MTP", "Off"} <= {choice.method for choice, _, _ in rendered}
    assert {1, 2, 8} <= {choice.tensor for choice, _, _ in rendered}
    assert {1, 4, 8} == {choice.data for choice, _, _ in rendered}
    assert {(1, 0), (2, 0), (2, 1)} <= {(choice.nodes, rank) for choice, rank, _ in rendered}
    result = parsed([argv for _, _, argv in rendered])
    assert result.returncode == 0, result.stderr[-2000:]
    answers = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    assert any(lora != PLAIN for lora, *_ in answers)
    for (choice, rank, argv), answer in zip(rendered, answers, strict=True):
        *answer, data, expert = answer
        assert (data, expert) == (choice.data, "--enable-expert-parallel" in argv)
        lora, model, tensor, length, speculative, cache, *group = answer
        if "--enable-lora" in argv:
            modules = ["k_proj", "q_proj"] if "--lora-target-modules" in argv else None
            paths = [["a/b", "/adapters/tuned/a,b=c"], ["sql", "/adapter-cache/acme/sql/beef"]]
            assert lora == [True, 2, 64, modules, paths]
        assert model == argv[0]
        assert group == [choice.nodes, choice.nodes, rank, rank > 0]
        assert (tensor, length, cache) == (choice.tensor, choice.max_model_len, choice.kv_cache_bytes)
        assert (speculative is None) == (choice.method == "Off")
    assert any('"model": "/drafts/drafts/chat/1-ab"' in text for _, _, argv in rendered for text in argv)


def test_vllms_own_parser_refuses_what_it_has_not() -> None:
    assert parsed([["acme/model", "--max-num-sequences-of-another-engine=8"]]).returncode != 0
