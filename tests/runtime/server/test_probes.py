"""What Kubernetes, Prometheus and the operator read."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from turbo_dev.server_process import PATIENCE
from turbo_runtime.contract import documents, endpoints
from turbo_runtime.messages import DraftStats, EngineStats
from turbo_runtime.server import metrics
from turbo_runtime.server.metrics import Metrics


def samples(server) -> dict[tuple[str, ...], float]:
    """Metric values by name and label values, the model's left out."""
    page = httpx.get(server.url + endpoints.METRICS_PATH).text
    return {
        (
            sample.name,
            *(value for label, value in sample.labels.items() if label != "model_name"),
        ): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_a_loaded_server_is_alive_and_ready(server) -> None:
    assert httpx.get(server.url + endpoints.HEALTH_PATH).status_code == 200
    assert httpx.get(server.url + endpoints.READY_PATH).json() == {"status": "serving"}


def test_a_loading_server_is_alive_and_not_ready(launch) -> None:
    server = launch(model="slow", ready=False)
    assert httpx.get(server.url + endpoints.HEALTH_PATH).status_code == 200
    ready = httpx.get(server.url + endpoints.READY_PATH)
    assert (ready.status_code, ready.json()) == (503, {"status": "loading the model"})
    for path in (endpoints.LOAD_PATH, endpoints.VERSION_PATH):
        assert httpx.get(server.url + path).status_code == 503
    assert httpx.get(server.url + endpoints.METRICS_PATH).status_code == 200
    reply = httpx.post(f"{server.url}/v1/completions", json={"model": "slow", "prompt": "x"})
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "5"


def test_version_tells_what_is_served_and_what_it_promises(server) -> None:
    version = httpx.get(server.url + endpoints.VERSION_PATH).json()
    assert version["model"] == "echo"
    assert (version["guarantee"], version["guarantee_reason"]) == ("bitwise", None)
    assert version["arithmetic"] == {"576x576": "X @ Wt"}
    reason = "there are 2 threads for 4 cores"
    assert version["threads"] == {"count": 2, "wait": "sleep", "reason": reason}
    assert version["digest"] == "sha256:feed"
    assert (version["device"], version["dtype"], version["max_model_len"]) == ("cpu", "float32", 2048)
    assert version["version"]


def test_load_is_the_contracts_document_and_counts_what_runs(launch, connect_to) -> None:
    server = launch()
    with connect_to(server) as client:
        first = documents.Load.from_json(httpx.get(server.url + endpoints.LOAD_PATH).text)
        assert first.first_token_time is None
        assert (first.load_seconds or 0.0) >= 0.0
        begin = time.time()
        client.completions.create(model="echo", prompt="abcde", temperature=0)
        idle = documents.Load.from_json(httpx.get(server.url + endpoints.LOAD_PATH).text)
        assert (idle.running_requests, idle.waiting_requests, idle.running_tokens) == (0, 0, 0)
        assert (idle.drafts, idle.draft_tokens, idle.accepted_tokens, idle.generated_tokens) == (2, 8, 4, 6)
        assert (idle.kv_cache_tokens, idle.guarantee) == (16384, "bitwise")
        assert not idle.draining
        assert idle.speedup == 1.75
        assert begin - 0.01 <= (idle.first_token_time or 0.0) <= time.time() + 0.01
        assert (idle.max_num_seqs, idle.prompts, idle.prompt_tokens) == (32, 1, 5)
        assert idle.step_times == (
            documents.StepTime(1, 1, 256, 0.01),
            documents.StepTime(8, 1, 256, 0.0125),
            documents.StepTime(1, 512, 0, 0.25),
        )
        with client.completions.create(model="echo", prompt="hold", max_tokens=900, stream=True) as stream:
            next(iter(stream))
            busy = documents.Load.from_json(httpx.get(server.url + endpoints.LOAD_PATH).text)
        assert (busy.running_requests, busy.running_tokens) == (1, 16)
        assert busy.kv_cache_usage == 1 / 1024


def test_counters_follow_the_engine_and_latencies_the_server(launch, connect_to) -> None:
    server = launch()
    with connect_to(server) as client:
        client.completions.create(model="echo", prompt="abcde", temperature=0, max_tokens=9)
        client.completions.create(model="echo", prompt="abcde", temperature=0, max_tokens=4)
    seen = samples(server)
    assert seen[(metrics.PROMPT_TOKENS.name + "_total",)] == 10
    assert seen[(metrics.GENERATION_TOKENS.name + "_total",)] == 10
    assert seen[(metrics.SPEC_NUM_DRAFTS.name + "_total",)] == 4
    assert seen[(metrics.SPEC_NUM_DRAFT_TOKENS.name + "_total",)] == 16
    assert seen[(metrics.SPEC_NUM_ACCEPTED_TOKENS.name + "_total",)] == 6
    assert seen[(metrics.SPEC_NUM_ACCEPTED_TOKENS_PER_POS.name + "_total", "0")] > 0
    assert seen[(metrics.REQUEST_SUCCESS.name + "_total", "stop")] == 1
    assert seen[(metrics.REQUEST_SUCCESS.name + "_total", "length")] == 1
    assert seen[(metrics.TIME_TO_FIRST_TOKEN.name + "_count",)] == 2
    assert seen[(metrics.INTER_TOKEN_LATENCY.name + "_count",)] == 2  # one for each later step
    assert seen[(metrics.REQUEST_TIME_PER_OUTPUT_TOKEN.name + "_count",)] == 2
    assert seen[(metrics.E2E_REQUEST_LATENCY.name + "_count",)] == 2
    assert seen[(metrics.NUM_REQUESTS_RUNNING.name,)] == 0
    assert seen[(metrics.NUM_REQUESTS_WAITING.name,)] == 0
    assert seen[(metrics.KV_CACHE_USAGE.name,)] == 0
    assert seen[(metrics.GUARANTEE_INFO.name, "bitwise")] == 1
    assert seen[(metrics.CACHE_CONFIG_INFO.name, "16", "1024")] == 1
    assert seen[(metrics.PREFIX_CACHE_QUERIES.name + "_total",)] == 10
    assert seen[(metrics.PREFIX_CACHE_HITS.name + "_total",)] == 5
    assert seen[(metrics.REQUEST_QUEUE_TIME.name + "_sum",)] == 1
    assert seen[(metrics.REQUEST_PROMPT_TOKENS.name + "_sum",)] == 10
    assert seen[(metrics.REQUEST_GENERATION_TOKENS.name + "_sum",)] == 10
    assert seen[(metrics.ITERATION_TOKENS.name + "_sum",)] == 20  # the answers' and their prompts'
    assert seen[(metrics.ITERATION_TOKENS.name + "_count",)] == 4
    assert seen[(metrics.VERIFIED_DRAFT_LENGTH.name + "_total", "4")] == 4
    assert seen[(metrics.STEP_SECONDS.name + "_total",)] == 2
    assert seen[(metrics.FORWARD_SECONDS.name + "_total",)] == 1
    assert seen[(metrics.SPEEDUP.name,)] == 1.75
    assert seen[(metrics.DRAFT_INFO.name, "default", "heads-3")] == 1
    assert seen[(metrics.AUDITS.name + "_total",)] == 2
    assert seen[(metrics.AUDIT_MISMATCHES.name + "_total",)] == 1


@pytest.mark.parametrize("reason", ["stop", "length", "abort", "error"])
def test_only_complete_answers_are_measured_whole(reason: str) -> None:
    exporter = Metrics("m")
    exporter.observe_finish(reason, 7, 5, 0.5, 2.5)
    page = exporter.render().decode()
    assert f'vllm:request_success_total{{finished_reason="{reason}",model_name="m"}} 1.0' in page
    complete = float(reason in ("stop", "length"))
    for name in (
        metrics.E2E_REQUEST_LATENCY.name,
        metrics.REQUEST_TIME_PER_OUTPUT_TOKEN.name,
        metrics.REQUEST_PROMPT_TOKENS.name,
        metrics.REQUEST_GENERATION_TOKENS.name,
    ):
        assert f'{name}_count{{model_name="m"}} {complete}' in page


def test_a_steps_tokens_are_those_it_brought_and_the_prompts_it_finished() -> None:
    exporter = Metrics("m")
    for generated, begun, drafted in ((0, 0, 0), (1, 40, 4), (1, 40, 4), (4, 40, 8)):
        stats = EngineStats(generated_tokens=generated, begun_prompt_tokens=begun, draft_tokens=drafted)
        exporter.update(stats)
    page = exporter.render().decode()
    assert 'vllm:iteration_tokens_total_sum{model_name="m"} 44.0' in page
    assert 'vllm:iteration_tokens_total_count{model_name="m"} 2.0' in page
    assert 'vllm:prompt_tokens_total{model_name="m"} 40.0' in page


def test_what_is_not_known_is_no_metric(launch) -> None:
    seen = {name for name, *_ in samples(launch())}
    assert not seen & {metrics.SPEEDUP.name, metrics.DRAFT_INFO.name}


def test_drafts_without_a_version_are_no_version() -> None:
    exporter = Metrics("m")
    for version in ("heads-3", "heads-4", ""):
        exporter.update(EngineStats(by_draft=(DraftStats("default", version),)))
        told = re.findall(r'^turbo:draft_info\{.*version="(.*)"\} 1', exporter.render().decode(), re.M)
        assert told == ([version] if version else [])


def test_drafts_are_counted_by_name_and_a_name_that_is_dropped_is_told_no_more() -> None:
    exporter = Metrics("m")

    def told(*drafts: DraftStats) -> list[tuple[str, str, float]]:
        exporter.update(EngineStats(by_draft=drafts))
        found = re.findall(
            r'^turbo:spec_decode_num_(\w+)_total\{draft="(.*?)".*\} (.*)$', exporter.render().decode(), re.M
        )
        return [(name, draft, float(count)) for name, draft, count in found if float(count)]

    default = DraftStats("default", "v1", 2, 9, 5, 4, 3)
    counts = {"drafts": 2, "draft_tokens": 9, "accepted_tokens": 5}
    counts |= {"head_draft_tokens": 4, "head_accepted_tokens": 3}
    once = [(name, "default", float(count)) for name, count in counts.items()]
    assert told(default) == once
    assert told(default, DraftStats("latex", "v1", 1, 4, 4))[1] == ("drafts", "latex", 1.0)
    assert told(default) == once
    assert 'draft="latex"' not in exporter.render().decode()
    assert told(default, DraftStats("latex", "v1", 0, 0, 0)) == once
    assert told(default, DraftStats("latex", "v1", 3, 8, 2))[1] == ("drafts", "latex", 3.0)


def test_a_problem_of_the_drafts_is_a_metric_until_it_is_mended() -> None:
    exporter = Metrics("m")
    for problem in ("", "drafts.json cannot be read", ""):
        exporter.update(EngineStats(draft_error=problem))
        told = re.findall(r"^turbo:draft_error\{.*\} (.*)$", exporter.render().decode(), re.M)
        assert [float(value) for value in told] == [1.0 if problem else 0.0]


def test_version_tells_the_drafts_in_use(launch, connect_to) -> None:
    server = launch()
    assert httpx.get(server.url + endpoints.VERSION_PATH).json()["draft_version"] is None
    with connect_to(server) as client:
        client.completions.create(model="echo", prompt="abc")
    told = httpx.get(server.url + endpoints.VERSION_PATH).json()
    assert (told["draft_version"], told["draft_error"]) == ("heads-3", "heads-4 is no folder")
    assert told["drafts"] == {"default": "heads-3", "latex": "latex-1"}


def test_every_metric_is_documented_and_no_other(server) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "monitoring.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:vllm|turbo):\w+)`", page))
    lines = httpx.get(server.url + endpoints.METRICS_PATH).text.splitlines()
    served = {line.split()[2] for line in lines if line.startswith("# TYPE ")}
    suffixed = {name.removesuffix("_total") for name in served} | {metrics.ITERATION_TOKENS.name}
    assert named == suffixed - {metrics.ITERATION_TOKENS.name.removesuffix("_total")}


def test_what_vllm_measures_too_has_vllms_name_and_type() -> None:
    """Its dashboards and autoscalers ask for these; a name that changed everywhere here would reach none."""
    lines = Metrics("m").render().decode().splitlines()
    served = [tuple(line.split()[2:]) for line in lines if line.startswith("# TYPE vllm:")]
    assert sorted((name, kind) for name, kind in served if not name.endswith("_created")) == [
        ("vllm:cache_config_info", "gauge"),
        ("vllm:e2e_request_latency_seconds", "histogram"),
        ("vllm:generation_tokens_total", "counter"),
        ("vllm:inter_token_latency_seconds", "histogram"),
        ("vllm:iteration_tokens_total", "histogram"),
        ("vllm:kv_cache_usage_perc", "gauge"),
        ("vllm:num_preemptions_total", "counter"),
        ("vllm:num_requests_running", "gauge"),
        ("vllm:num_requests_waiting", "gauge"),
        ("vllm:prefix_cache_hits_total", "counter"),
        ("vllm:prefix_cache_queries_total", "counter"),
        ("vllm:prompt_tokens_total", "counter"),
        ("vllm:request_generation_tokens", "histogram"),
        ("vllm:request_prompt_tokens", "histogram"),
        ("vllm:request_queue_time_seconds", "histogram"),
        ("vllm:request_success_total", "counter"),
        ("vllm:request_time_per_output_token_seconds", "histogram"),
        ("vllm:spec_decode_num_accepted_tokens_per_pos_total", "counter"),
        ("vllm:spec_decode_num_accepted_tokens_total", "counter"),
        ("vllm:spec_decode_num_draft_tokens_total", "counter"),
        ("vllm:spec_decode_num_drafts_total", "counter"),
        ("vllm:time_to_first_token_seconds", "histogram"),
    ]


def test_a_full_queue_is_a_429_that_says_when_to_retry(launch, connect_to) -> None:
    server = launch("--max-num-seqs=1", "--max-queued-requests=1")
    with connect_to(server) as client:
        held = [
            client.completions.create(model="echo", prompt="hold", max_tokens=900, stream=True)
            for _ in range(2)
        ]
        for stream in held:
            next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="echo", prompt="more")
        assert caught.value.code == "queue_full"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        for stream in held:
            stream.close()


async def test_a_burst_fills_the_queue_to_its_bound_and_not_beyond(launch) -> None:
    server = launch("--max-num-seqs=2", "--max-queued-requests=3")
    body = {"model": "echo", "prompt": "hold", "max_tokens": 150, "stream": True}
    async with httpx.AsyncClient(base_url=f"{server.url}/v1/", timeout=PATIENCE) as client:
        replies = await asyncio.gather(*[client.post("completions", json=body) for _ in range(12)])
    statuses = sorted(reply.status_code for reply in replies)
    assert statuses == [200] * 5 + [429] * 7
    assert server.engine_log.read_text().count("GenerationRequest(") == 5


def test_the_servers_process_holds_no_torch(server) -> None:
    libraries = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "tokenizers" in libraries  # the file does list what is loaded
    assert "torch" not in libraries
