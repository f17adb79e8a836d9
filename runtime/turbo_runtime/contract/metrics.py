"""Metric names and labels of the runtime."""

from __future__ import annotations

# Metrics that vLLM has keep vLLM's names and meanings, so that its dashboards and autoscalers read both
# engines alike.
NUM_REQUESTS_RUNNING = "vllm:num_requests_running"
NUM_REQUESTS_WAITING = "vllm:num_requests_waiting"
KV_CACHE_USAGE = "vllm:kv_cache_usage_perc"  # 0 to 1
PROMPT_TOKENS = "vllm:prompt_tokens"
GENERATION_TOKENS = "vllm:generation_tokens"
NUM_PREEMPTIONS = "vllm:num_preemptions"
REQUEST_SUCCESS = "vllm:request_success"  # label finished_reason
TIME_TO_FIRST_TOKEN = "vllm:time_to_first_token_seconds"  # noqa: S105
REQUEST_QUEUE_TIME = "vllm:request_queue_time_seconds"
INTER_TOKEN_LATENCY = "vllm:inter_token_latency_seconds"  # noqa: S105
REQUEST_TIME_PER_OUTPUT_TOKEN = "vllm:request_time_per_output_token_seconds"  # noqa: S105
E2E_REQUEST_LATENCY = "vllm:e2e_request_latency_seconds"
REQUEST_PROMPT_TOKENS = "vllm:request_prompt_tokens"  # histogram, as the next two
REQUEST_GENERATION_TOKENS = "vllm:request_generation_tokens"
ITERATION_TOKENS = "vllm:iteration_tokens_total"
PREFIX_CACHE_QUERIES = "vllm:prefix_cache_queries"  # in tokens
PREFIX_CACHE_HITS = "vllm:prefix_cache_hits"
SPEC_NUM_DRAFTS = "vllm:spec_decode_num_drafts"
SPEC_NUM_DRAFT_TOKENS = "vllm:spec_decode_num_draft_tokens"
SPEC_NUM_ACCEPTED_TOKENS = "vllm:spec_decode_num_accepted_tokens"
SPEC_NUM_ACCEPTED_TOKENS_PER_POS = "vllm:spec_decode_num_accepted_tokens_per_pos"  # label position
# Metrics that only Turbo has.
GUARANTEE_INFO = "turbo:guarantee_info"  # label guarantee: bytes | law; value 1
SPEEDUP = "turbo:speedup"  # lately, over no speculation; absent while it is not known
CHOSEN_DRAFTS = "turbo:chosen_drafts"  # label drafts: how many were verified for an answer in a step
HEARTBEAT_AGE = "turbo:engine_heartbeat_age_seconds"  # since the engine last finished a step or a rest
DRAFT_PROBLEM = "turbo:draft_problem"  # 1 while drafts are not what was asked for; /version says why
DRAFT_INFO = "turbo:draft_info"  # labels draft and version: of the draft weights in use; value 1
# Counters with the label draft: of requests that chose it, what SPEC_NUM_* count of all.
DRAFTS_BY_DRAFT = "turbo:drafts_by_draft"
DRAFT_TOKENS_BY_DRAFT = "turbo:draft_tokens_by_draft"
ACCEPTED_TOKENS_BY_DRAFT = "turbo:accepted_tokens_by_draft"
OWN_DRAFT_TOKENS_BY_DRAFT = "turbo:own_draft_tokens_by_draft"
OWN_ACCEPTED_TOKENS_BY_DRAFT = "turbo:own_accepted_tokens_by_draft"
STEP_SECONDS = "turbo:step_seconds"  # counters: of the engine's steps, and of them in the model
FORWARD_SECONDS = "turbo:forward_seconds"
# Counters: of steps that brought answers tokens, and what as many tokens would take without drafts, as probes
# have it. The latter's growth over the former's is the speed-up of any window.
ANSWERING_SECONDS = "turbo:answering_seconds"
PLAIN_ANSWERING_SECONDS = "turbo:plain_answering_seconds"
AUDITS = "turbo:audits"
AUDIT_MISMATCHES = "turbo:audit_mismatches"
CAPTURE_PROMPTS = "turbo:capture_prompts"  # label outcome: whether one was kept, and why not
CAPTURE_BYTES = "turbo:capture_bytes"  # of the folder that prompts are kept in
CAPTURE_PROBLEM = "turbo:capture_problem"  # 1 while prompts are not kept as was asked for; the log says why
# Labels. Every vllm: metric has the first, as in vLLM.
MODEL_LABEL = "model_name"
FINISHED_REASON_LABEL = "finished_reason"  # stop | length | abort | error
POSITION_LABEL = "position"
GUARANTEE_LABEL = "guarantee"
DRAFTS_LABEL = "drafts"
DRAFT_LABEL = "draft"  # default, or a name of the file that --drafts follows
VERSION_LABEL = "version"
OUTCOME_LABEL = (
    "outcome"  # kept | not_sampled | refused | ambiguous | unredacted | deleted | overrun | failed
)
