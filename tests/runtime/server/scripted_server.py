"""The real server over an engine that follows a script; a program with `turbo serve`'s arguments.

The engine echoes. Its greedy answer is the prompt's own tokens and then the end-of-sequence token; a
sampled answer is the prompt rotated by seed + choice. With speculation a step brings three tokens, without
it one. Half of a prompt is always found in the cache. Some words make it misbehave: a prompt that starts
with `hold` is repeated slowly until max_tokens, with `stuck` its step never ends, `fail` is answered with an
error, `refuse` with a refusal, and `crash` ends the process. A model named `unloadable` fails to load,
`vanishing` dies while it loads, `slow` waits for a Stop, and `endless` loads and reads no message. The
messages to the engine are written to the file that SCRIPTED_ENGINE_LOG names.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.contract.documents import StepTime
from turbo_runtime.messages import (
    Abort,
    DraftStats,
    EngineFailed,
    EngineReady,
    EngineStats,
    GenerationRequest,
    Refused,
    Shutdown,
    StepOutput,
    ThreadSettings,
    TokenEvent,
    TokenLogprob,
)
from turbo_runtime.server.lifecycle import run_server

EOS = "<|end|>"
TEMPLATE = (
    # how Qwen3 writes: <tool_call> and </think>
    "{% set offered = tools %}{# <tool_call> </think> #}{% if enable_thinking %}<think>{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' and loop.first %}"
    "{{ raise_exception('an assistant does not speak first') }}{% endif %}{{ m.content }}{% endfor %}"
)
SLOW_STEP_SECONDS = 0.02
REST_SECONDS = 0.1  # between two beats of an idle engine
STEP_TIMES = (StepTime(1, 1, 256, 0.01), StepTime(8, 1, 256, 0.0125), StepTime(1, 512, 0, 0.25))


def write_tokenizer(directory: Path) -> Tokenizer:
    """A byte-level tokenizer without merges of its own: any text, one to four tokens for a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["hello world, the quick brown fox; hello again, world"], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}), encoding="utf-8")
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return tokenizer


class Script:
    """One request's answer, given away step by step."""

    def __init__(self, request: GenerationRequest, text: str, eos: int) -> None:
        params = request.params
        turn = (params.seed + request.choice) % len(request.prompt) if params.temperature else 0
        echo = (*request.prompt[turn:], *request.prompt[:turn])
        self.request, self.text, self.eos = request, text, eos
        self.slow = text.startswith("hold")
        self.tokens = list(echo * (params.max_tokens // len(echo) + 1) if self.slow else (*echo, eos))
        self.tokens = self.tokens[: params.max_tokens]
        ends = (place for place, token in enumerate(self.tokens) if token in params.stop_token_ids)
        self.tokens = self.tokens[: next(ends, len(self.tokens)) + 1]
        self.first = True

    def step(self) -> TokenEvent:
        params = self.request.params
        invalid: Refused | None = None
        if self.text.startswith("refuse"):
            invalid = "request"
        elif params.grammar is not None and "refuse" in params.grammar.text:
            invalid = "grammar"
        if invalid or self.text.startswith("fail"):
            sentence = "The script says so."
            return TokenEvent(self.request.request_id, finish_reason="error", error=sentence, refused=invalid)
        speculative = self.request.params.draft_method != "off" and not self.slow
        now, self.tokens = (
            (self.tokens[:3], self.tokens[3:]) if speculative else (self.tokens[:1], self.tokens[1:])
        )
        drafted: dict[str, Any] = {}
        if speculative:
            speedup = 1.5 * (1 + self.request.choice)
            drafted = {"drafted": 4, "accepted": len(now) - 1, "speedup": speedup}
        reason = None if self.tokens else "stop" if now[-1] in params.stop_token_ids else "length"
        told: dict[str, Any] = {}
        if params.logprobs is not None:
            told["logprobs"] = tuple(self.logprob(token, params.logprobs) for token in now)
        if self.first:
            told |= {"cached_tokens": len(self.request.prompt) // 2, "queued_seconds": 0.5}
        if self.first and params.prompt_logprobs is not None:
            prompt = self.request.prompt[1:]
            told["prompt_logprobs"] = tuple(self.logprob(token, params.prompt_logprobs) for token in prompt)
        self.first = False
        return TokenEvent(self.request.request_id, tuple(now), reason, **drafted, **told)

    def logprob(self, token: int, count: int) -> TokenLogprob:
        """The token itself is always the second likeliest, after the end of the sequence."""
        return TokenLogprob(token, -1.5, 2, ((self.eos, -0.5), (token, -1.5))[:count])


class Engine:
    def __init__(self, config: RuntimeConfig, inbox, outbox, tokenizer_dir: str, beat, log: TextIO) -> None:
        self.tokenizer = write_tokenizer(Path(tokenizer_dir))
        self.inbox, self.outbox, self.beat = inbox, outbox, beat
        self.eos = self.tokenizer.token_to_id(EOS)
        self.running: dict[str, Script] = {}
        self.begun = self.generated = self.prompts = self.prompted = self.drafts = self.drafted = (
            self.accepted
        ) = 0
        self.log = log
        outbox.put(
            EngineReady(
                guarantee="bitwise",
                arithmetic={"576x576": "X @ Wt"},
                threads=ThreadSettings(2, "sleep", "there are 2 threads for 4 cores"),
                max_model_len=config.max_model_len or 2048,
                max_num_seqs=config.limits("cpu").max_num_seqs,
                kv_blocks=1024,
                vocab_size=self.tokenizer.get_vocab_size(),
                eos_token_ids=(self.eos,),
                digest="sha256:feed",
                step_times=STEP_TIMES,
            )
        )

    def run(self) -> None:
        while self.listen():
            self.beat()
            if self.running:
                self.step()

    def listen(self) -> bool:
        """Take in what the server says; False once it says Stop. Waits a little while there is nothing to
        do.
        """
        pace = REST_SECONDS
        if self.running:
            pace = SLOW_STEP_SECONDS if any(script.slow for script in self.running.values()) else 0.0
        try:
            message = self.inbox.get(timeout=pace)
            while True:
                print(message, file=self.log, flush=True)
                if isinstance(message, Shutdown):
                    return False
                if isinstance(message, GenerationRequest):
                    self.admit(message)
                elif isinstance(message, Abort):
                    self.running.pop(message.request_id, None)
                message = self.inbox.get_nowait()
        except queue.Empty:
            return True

    def admit(self, request: GenerationRequest) -> None:
        text = self.tokenizer.decode(list(request.prompt))
        if text.startswith("crash"):
            os._exit(3)
        if text.startswith("stuck"):
            time.sleep(3600)
        self.prompts += 1
        self.prompted += len(request.prompt)
        self.running[request.request_id] = Script(request, text, self.eos)

    def step(self) -> None:
        prompts = {name: len(script.request.prompt) for name, script in self.running.items()}
        events = tuple(script.step() for script in self.running.values())
        for event in events:
            if event.finish_reason:
                del self.running[event.request_id]
            self.generated += len(event.tokens)
            self.begun += 0 if event.cached_tokens is None else prompts[event.request_id]
            self.drafts += event.drafted > 0
            self.drafted += event.drafted
            self.accepted += event.accepted
        stats = EngineStats(
            running_requests=len(self.running),
            running_tokens=16 * len(self.running),
            kv_blocks_used=len(self.running),
            drafts=self.drafts,
            draft_tokens=self.drafted,
            accepted_tokens=self.accepted,
            accepted_per_position=(self.accepted, 0),
            prompts=self.prompts,
            prompt_tokens=self.prompted,
            generated_tokens=self.generated,
            step_seconds=0.5 * self.drafts,
            forward_seconds=0.25 * self.drafts,
            begun_prompt_tokens=self.begun,
            prefix_cache_queries=self.prompted,
            prefix_cache_hits=self.prompted // 2,
            verified_draft_length=(0, 0, 0, 0, self.drafts),
            speedup=1.75,
            draft_version="heads-3",
            by_draft=(
                DraftStats("default", "heads-3", self.drafts, self.drafted, self.accepted, self.drafted, 0),
                DraftStats("latex", "latex-1"),
            ),
            draft_error="heads-4 is no folder",
            audits=2,
            audit_mismatches=1,
        )
        self.outbox.put(StepOutput(events, stats))


def scripted_engine(config: RuntimeConfig, inbox, outbox, tokenizer_dir: str, beat) -> None:
    if config.model == "unloadable":
        outbox.put(EngineFailed("There is no model at unloadable."))
        return
    if config.model == "vanishing":
        os._exit(7)
    if config.model == "slow":
        inbox.get()
        return
    if config.model == "endless":
        time.sleep(3600)
    with Path(os.environ["SCRIPTED_ENGINE_LOG"]).open("a", encoding="utf-8") as log:
        Engine(config, inbox, outbox, tokenizer_dir, beat, log).run()


if __name__ == "__main__":
    sys.exit(run_server(RuntimeConfig.from_argv(sys.argv[1:]), scripted_engine))
