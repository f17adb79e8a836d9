"""The environment of the engine process, settled before torch and transformers are imported."""

from __future__ import annotations

import os


def settle_threads(threads: int | None) -> None:
    """Fix the number of threads (None: as many as allowed cores) and let idle ones sleep.

    To be called before torch is imported: afterwards the OpenMP runtime no longer reads its environment. By
    default a thread that waits for its siblings spins. On a shared core it then burns the time that the
    sibling needs: with four busy neighbors on two cores, a step took twenty times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def quiet_libraries() -> None:
    """Turn off the advice and progress bars of libraries; errors still come, as exceptions or log lines.

    To be called before transformers is imported: its GGUF loader draws its bar with tqdm itself, which reads
    its environment once, when it is imported.
    """
    os.environ["TQDM_DISABLE"] = "1"
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
