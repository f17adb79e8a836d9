"""`turbo distill`."""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from turbo_runtime.cli.arguments import bounded
from turbo_runtime.client.client import ServerError
from turbo_runtime.contract.config import Device, DType, RuntimeConfig
from turbo_runtime.contract.endpoints import PERMANENT_ERROR, TERMINATION_MESSAGE_BYTES
from turbo_runtime.distill.data.responses import ANSWERS_FILE, deal, read_kept, render_turns
from turbo_runtime.distill.progress import Progress, serve_progress, spell
from turbo_runtime.distill.recipe import (
    HEADS,
    MAX_DEPTH,
    METHOD_DEFAULTS,
    METHODS,
    DistillError,
    Recipe,
    TransientError,
)
from turbo_runtime.distill.workspace import RunSpec, Workspace, captured_before, drawn_by, read_manifest
from turbo_runtime.drafters.draft_memory import MAX_MIB
from turbo_runtime.engine.threads import settle_threads
from turbo_runtime.model_files.hub_cache import note_commit
from turbo_runtime.model_files.source import HubUnreachableError, ModelError, find
from turbo_runtime.prompts import MAX_CAPTURED, Prompt, PromptsError, read_prompts

_DOMAIN = "draft"
MEMORY_GIB = 1.0
MAX_RUNNING = 32
_DRAWING = (
    "test_fraction",
    "validation_fraction",
    "variants",
    "variant_temperature",
    "completions",
    "max_captured",
)
TERMINATED = 128 + signal.SIGTERM  # as a shell tells of it

_EPILOG = """\
Answers are the model's own, drawn with the settings above: give those that it is served with. After Ctrl-C
or a kill the same command goes on: some answers, some seconds of training or the stage in progress are done
again. Exit status: 0 when done, or done before; 1 when it failed and may work later; 2 for a wrong command
line; 3 when trying again cannot help.
"""


def distill(argv: list[str]) -> int:
    """`turbo distill MODEL --prompts FILE --out DIR`."""
    command = parser()
    options = command.parse_args(argv)
    if options.answers and options.endpoint:
        command.error("--from asks for new answers, and --answers takes those that are there; leave one out")
    if options.answers and (asking := [name for name in _DRAWING if getattr(options, name) is not None]):
        flags = ", ".join(map(_flag, asking))
        command.error(f"--answers takes prompts and answers as they were dealt and drawn; leave out {flags}")
    # a container's first process has no default handler and would run until it is killed
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        values = {name: getattr(options, name) for name in Recipe.__dataclass_fields__}
        typed = {name: value for name, value in values.items() if value is not None}
        recipe = Recipe(**{**METHOD_DEFAULTS[options.method], **drawn_by(options.answers), **typed})
        prompts = _read_prompts(options, recipe) if options.prompts else []
        if not recipe.words + recipe.distribution_loss_weight + recipe.variation:
            flags = "--words, --distribution-loss-weight and --variation"
            raise DistillError(f"{flags} are all 0: there is nothing to learn from")
        find(options.model, options.revision)
        settle_threads(options.threads)
        # import torch only now: the threads are settled, and the command line is right
        from turbo_runtime.engine.process import quiet_libraries
        from turbo_runtime.models.loader import gguf_parsed_once

        quiet_libraries()
        progress = Progress()
        with gguf_parsed_once(), serve_progress(options.progress_port, lambda: progress.now) as port:
            if options.progress_port == 0:
                progress.say(f"progress is told on port {port}")
            _run(options, recipe, prompts, progress)
        text, status = read_manifest(options.out).to_json(), 0
    except (HubUnreachableError, TransientError, ServerError, OSError) as error:
        text, status = str(error), 1
    except (PromptsError, ModelError, DistillError) as error:
        text, status = str(error), PERMANENT_ERROR
    except (KeyboardInterrupt, SystemExit):  # by a signal
        print(f"turbo distill: stopped; the same command goes on with {options.out}", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)
    if status:
        print(f"turbo distill: {text}", file=sys.stderr)
    if options.termination_message is not None:
        options.termination_message.write_bytes(text.encode()[:TERMINATION_MESSAGE_BYTES])
    return status


def _read_prompts(options: argparse.Namespace, recipe: Recipe) -> list[Prompt]:
    """Read them all, and require some for each part. Raises PromptsError."""
    # traffic goes on: what was captured when the first run began is what is learned from
    before = captured_before(options.out, options.prompts)
    newest = (options.max_captured or MAX_CAPTURED) if before is None else 0
    domain, chat = options.domain or "", not options.completions
    new = read_prompts(options.prompts, chat=chat, captured=newest, domain=domain)
    for prompt in new:
        if prompt.messages:
            render_turns(prompt)  # to fail before the model is loaded
    prompts = [*new, *(before or ())]
    if empty := [name for name, part in deal(prompts, recipe.seed, recipe.shares).items() if not part]:
        unlike = len({prompt.content for prompt in prompts})
        which = f", {unlike} of them unlike," if unlike < len(prompts) else ""
        raise PromptsError(
            f"{len(prompts)} prompts{which} leave none for the part '{empty[0]}'; give more prompts: some "
            "hundreds of one kind are what a draft learns from"
        )
    return prompts


def _run(options: argparse.Namespace, recipe: Recipe, prompts: Sequence[Prompt], progress: Progress) -> None:
    """Train and measure the draft, unless that is done."""
    from turbo_runtime.distill.pipeline import Distillation
    from turbo_runtime.distill.target import TargetModel
    from turbo_runtime.engine.startup.builder import choose_device, choose_dtype
    from turbo_runtime.model_files.inspector import inspect_model

    device = choose_device(options.device)
    dtype = str(choose_dtype(options.dtype, device)).removeprefix("torch.")
    try:
        model = inspect_model(options.model, options.revision)
    except ValueError as error:  # with the message of `turbo inspect`
        raise DistillError(f"cannot inspect {options.model}: {error}") from error
    captured = [prompt for prompt in prompts if prompt.captured_at is not None]
    kept = read_kept(options.answers, model.digest)
    texts = [f"{prompt.domain}\n{prompt.content}" for prompt in prompts if prompt.captured_at is None]
    texts += [completion.line for completion in kept.completions]
    request = RunSpec(
        target_digest=model.digest,
        prompts_digest=f"sha256:{hashlib.sha256(chr(0).join(sorted(texts)).encode()).hexdigest()}",
        recipe=recipe,
        domain=options.domain or _DOMAIN,
        threads=options.threads or len(os.sched_getaffinity(0)),
        device=device.type,
        dtype=dtype,
        memory_gib=options.memory_gib,
        answers_from="kept" if kept.completions else "endpoint" if options.endpoint else "engine",
        captured=bool(captured or kept.captures),
    )
    work = Workspace(options.out, request, progress)
    if work.is_done:
        work.tidy()
        if options.keep_answers and not (options.out / ANSWERS_FILE).is_file():
            raise DistillError(
                f"{options.out} is done already and its answers were not kept; name another folder with --out"
            )
        progress.say(f"{options.out} is done already")
        return
    config = RuntimeConfig(
        options.model,
        revision=model.revision or options.revision,  # all parts of one commit, though a branch moves
        device=device.type,  # type: ignore[arg-type]  # one of the two that choose_device has
        dtype=dtype,  # type: ignore[arg-type]  # likewise
        threads=options.threads,
        max_model_len=options.max_model_len,
        max_num_seqs=MAX_RUNNING,
        audit_fraction=0.0,
    )
    with progress.stage("model", 1, "loaded") as advance:
        served = TargetModel(config)
        note_commit(options.model, options.revision, model.revision)
        advance()
    with work.lock():
        if work.is_done:
            progress.say(f"{options.out} was done meanwhile")
            work.remove()
            return
        if captured and captured_before(options.out, options.prompts) is None:
            work.keep_captured(options.prompts, captured)
        parts = deal(prompts, recipe.seed, recipe.shares) if prompts else {}
        record = Distillation(
            served,
            options.model,
            model.shape.active_parameters,
            parts,
            kept,
            work,
            speedup=not options.no_speedup,
            keep_answers=options.keep_answers,
            endpoint=options.endpoint,
        ).run()
    for line in record.summary():
        progress.say(line)
    progress.say(
        f"{options.out}: {record.method}, evaluation and report.html in {spell(sum(record.seconds.values()))}"
    )


def parser() -> argparse.ArgumentParser:
    """Create the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="turbo distill",
        usage="turbo distill MODEL (--prompts FILE ... | --answers DIR ...) --out DIR [options]",
        description="Train a draft for MODEL from its own answers to your prompts, and measure its worth.",
        epilog=_EPILOG,
    )
    help_of = {name: spec.metadata["help"] for name, spec in RuntimeConfig.__dataclass_fields__.items()}
    parser.add_argument("model", metavar="MODEL", help=help_of["model"])
    source = parser.add_mutually_exclusive_group(required=True)
    text = 'JSON lines with "prompt" or "messages", and "domain" if there are several; or folders of them'
    source.add_argument("--prompts", type=Path, nargs="+", metavar="FILE", help=text)
    text = "learn from the --keep-answers of earlier drafts of MODEL, instead of asking"
    source.add_argument("--answers", type=Path, nargs="+", default=(), metavar="DIR", help=text)
    text = f"of prompts kept by `turbo serve --capture-config` the newest so many (default: {MAX_CAPTURED})"
    parser.add_argument("--max-captured", type=bounded(int, 1), help=text)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the draft")
    text = (
        "what the draft is for, in a word, and the domain of captured prompts and of those of a single "
        f"file that name none themselves (default: {_DOMAIN}, and the file's name)"
    )
    parser.add_argument("--domain", help=text)
    text = "take prompts as they are, without the chat template"
    parser.add_argument("--completions", action="store_true", default=None, help=text)
    text = "measure no speeds: for a machine that will not serve the draft"
    parser.add_argument("--no-speedup", action="store_true", help=text)
    text = "leave the answers in DIR/answers.jsonl: they tell prompts"
    parser.add_argument("--keep-answers", action="store_true", help=text)
    answers = parser.add_argument_group("answers")
    text = (
        "ask a server of the OpenAI API that serves MODEL (vLLM, Turbo; its key in OPENAI_API_KEY) "
        "instead of the model in this process"
    )
    answers.add_argument("--from", dest="endpoint", default="", metavar="URL", help=text)
    _add(answers, "temperature", bounded(float, 0, 2), "of the answers, 0 for greedy ones")
    _add(answers, "top_p", bounded(float, 0.01, 1), "of the answers")
    _add(answers, "top_k", bounded(int, 0), "of the answers; 0 keeps all")
    _add(answers, "max_tokens", bounded(int, 2), "of an answer, at most")
    text = "further answers, drawn at random, to each prompt that is trained on"
    _add(answers, "variants", bounded(int, 0, 64), text)
    _add(answers, "variant_temperature", bounded(float, 0, 2), "of those, where --temperature is lower")
    _add(
        answers, "test_fraction", bounded(float, 0.01, 0.5), "share of the prompts that drafts are tested on"
    )
    text = "share of the prompts that confidences are learned from"
    _add(answers, "validation_fraction", bounded(float, 0.01, 0.4), text)
    draft = parser.add_argument_group("draft")
    text = (
        "heads are for the engine Turbo, eagle3 also for vLLM and SGLang, auto trains whichever a pilot on "
        "some of the answers says to pay more (default: heads)"
    )
    draft.add_argument("--method", default=HEADS, choices=METHODS, help=text)
    _add(draft, "depth", bounded(int, 1, MAX_DEPTH), "tokens that are drafted at once")
    _add(draft, "markov_rank", bounded(int, 0, 4096), "of the term by which heads follow the token before")
    _add(draft, "vocabulary", bounded(int, 2), "tokens that can be drafted, at most")
    text = (
        "MiB of the answers learned from that it brings to servers that have just started, at most; 0 for "
        "none. From those to captured prompts only their tenant drafts"
    )
    _add(draft, "draft_memory_mib", bounded(float, 0, MAX_MIB), text)
    training = parser.add_argument_group("training")
    _add(training, "epochs", bounded(int, 1), "times that everything is learned from")
    _add(training, "rows", bounded(int, 1), "places of one step")
    _add(training, "rate", bounded(float, 1e-8, 1), "of learning, at its highest")
    _add(training, "weight_decay", bounded(float, 0, 1), "of AdamW")
    _add(training, "warm_up", bounded(float, 0, 0.9), "share of the steps over which the rate rises")
    _add(training, "head_decay", bounded(float, 0, 1), "how much less each further head counts")
    _add(training, "words", bounded(float, 0, 100), "weight of the cross-entropy with what was said")
    text = "weight of the cross-entropy with the model's own probabilities"
    _add(training, "distribution_loss_weight", bounded(float, 0, 100), text)
    _add(training, "variation", bounded(float, 0, 100), "weight of the total variation from them")
    _add(training, "seed", bounded(int, 0, (1 << 64) - 1), "of everything that is drawn")
    machine = parser.add_argument_group("machine")
    text = "tell on this port over HTTP how far it is; 0 takes a free one"
    machine.add_argument("--progress-port", type=bounded(int, 0, 65535), help=text)
    text = "write to FILE what was made, as JSON, or the error"
    machine.add_argument("--termination-message", type=Path, metavar="FILE", help=text)
    machine.add_argument("--revision", help=help_of["revision"])
    machine.add_argument("--device", default="auto", choices=get_args(Device), help=help_of["device"])
    machine.add_argument("--dtype", default="auto", choices=get_args(DType), help="of the model")
    machine.add_argument("--threads", type=bounded(int, 1), help="CPU threads (default: allowed cores)")
    machine.add_argument("--max-model-len", type=bounded(int, 2), help=help_of["max_model_len"])
    text = f"for hidden states; of more answers than fit they are computed anew (default: {MEMORY_GIB:g})"
    machine.add_argument("--memory-gib", type=bounded(float, 0.01, 4096), default=MEMORY_GIB, help=text)
    return parser


def _add(group: Any, name: str, kind: Callable[[str], float], text: str) -> None:
    default = f"{Recipe.__dataclass_fields__[name].default:g}"
    for method, other in METHOD_DEFAULTS.items():
        default += f"; {method}: {other[name]:g}" if other.get(name) else ""
    group.add_argument(
        _flag(name), dest=name, metavar=name.upper(), type=kind, help=f"{text} (default: {default})"
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
