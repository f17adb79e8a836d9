"""Both runners, as they can run on a CPU: all that holds of one holds of the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from turbo_dev.varlen_reference import varlen_attn_out
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE
from turbo_runtime.models.cuda_runner import CudaModelRunner
from turbo_runtime.models.graphs import Capture, Run
from turbo_runtime.models.runner import ModelRunner


def capture_on_host() -> Capture:
    """What captures steps where there are no graphs: it computes them again, from and to the same tensors."""

    def capture(run: Run) -> Run:
        run()
        return run

    return capture


# small pages: so many blocks mean the same to both
RUNNERS: dict[str, Callable[..., ModelRunner]] = {
    "cpu": ModelRunner,
    "cuda": partial(CudaModelRunner, op=varlen_attn_out, page_size=BLOCK_SIZE, graphs=capture_on_host),
}
