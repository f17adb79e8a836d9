"""`turbo fetch`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

from turbo_runtime.contract.endpoints import PERMANENT_ERROR, S3_CACHE_VARIABLE
from turbo_runtime.distill.progress import Progress, serve_progress
from turbo_runtime.model_files import hub_cache, s3
from turbo_runtime.model_files.source import HubUnreachableError, ModelError, is_hub_id

TEMPORARY_ERROR = 1
_TERMINATED = 128 + signal.SIGTERM
_EPILOG = """\
Files are checked against the checksums of the hub, or of the store where it has one. A download that was
interrupted goes on where it was. What is there is not downloaded again, and where hub or store cannot be
reached a model that is there will do. Weights of other frameworks than torch are left out. For a bucket,
credentials, region and endpoint are found as AWS's tools find them, such as in AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL. Exit status: 0 when done; 1 when it failed and may
work later; 2 for a wrong command line; 3 when trying again cannot help.
"""


def fetch(argv: list[str]) -> int:
    """`turbo fetch MODEL [MODEL ...]`: models of the hub and of buckets to disk."""
    parser = argparse.ArgumentParser(
        prog="turbo fetch",
        description="Bring models of the Hugging Face hub into its cache on disk ($HF_HUB_CACHE), and those\n"
        f"of S3 buckets to folders of their own below ${S3_CACHE_VARIABLE}.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a Hugging Face hub id, which @ and a revision may follow, or s3://BUCKET/PREFIX",
    )
    parser.add_argument("--revision", help="commit, tag or branch of the first model (default: main)")
    parser.add_argument(
        "--commit",
        help="what the revision stands for (default: what the hub says); of a bucket its revision, which it "
        "must still have (default: what it has)",
    )
    parser.add_argument(
        "--progress-port", type=int, metavar="PORT", help="serve the progress as JSON at /progress"
    )
    parser.add_argument(
        "--termination-message", type=Path, metavar="FILE", help="write the last line to FILE too"
    )
    options = parser.parse_args(argv)
    # All that is lost is what the kernel has not written yet. A container's first process has no default
    # action, and threads that download would be waited for.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(_TERMINATED))
    progress = Progress()
    try:
        with serve_progress(options.progress_port, lambda: progress.now):
            text, status = _fetch(options, progress), 0
    except (OSError, ValueError) as error:
        is_temporary = not isinstance(error, ModelError) or isinstance(error, HubUnreachableError)
        text = f"Cannot fetch {' and '.join(options.models)}: {error}"
        status = TEMPORARY_ERROR if is_temporary else PERMANENT_ERROR
    print(text, file=sys.stderr if status else sys.stdout)
    if options.termination_message is not None:
        options.termination_message.write_text(text, encoding="utf-8")
    return status


def _fetch(options: argparse.Namespace, progress: Progress) -> str:
    """Fetch all; what was done, in a sentence. Raises ModelError or OSError."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()
    flags = [(options.revision, options.commit), *[(None, None)] * (len(options.models) - 1)]
    snapshots = []
    for text, (revision, commit) in zip(options.models, flags, strict=True):
        source, model = _source(text), text
        if source is hub_cache:
            model, _, own = text.partition("@")
            revision = own or revision
            if not is_hub_id(model):
                raise ModelError(f"{model} is no hub id such as org/model, and no s3://BUCKET/PREFIX")
            hub_cache.find_ref(model, revision)
        try:
            snapshots.append((source.list_snapshot(model, commit or revision), revision))
        except (HubUnreachableError, s3.StoreUnreachableError):
            if source.cached_snapshot(model, commit or revision) is None:
                raise
    total, present = (sum(getattr(each, name) for each, _ in snapshots) for name in ("size", "present"))
    with progress.stage("download", total, "bytes", present) as advance:
        for snapshot, revision in snapshots:
            _source(snapshot.model).fetch(snapshot, revision, advance)
    if len(snapshots) < len(options.models):
        return "The hub, or store, cannot be reached, and what is there will do."
    folders = "".join(f" {it.model} is in {it.folder}." for it, _ in snapshots if isinstance(it, s3.Snapshot))
    return f"Downloaded {total - present} bytes; {present} were there.{folders}"


def _source(model: str) -> ModuleType:
    """Return what fetches a model."""
    return s3 if s3.is_bucket(model) else hub_cache
