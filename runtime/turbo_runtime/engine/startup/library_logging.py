"""What the engine's libraries print by themselves, turned off: the log is the server's own sentences."""

from __future__ import annotations

import os


def quiet_libraries() -> None:
    """Errors still come, as exceptions or as log lines; advice and progress bars do not.

    To be called before transformers comes in: its GGUF loader draws its bar with tqdm itself, which reads its
    environment once, when it is imported.
    """
    os.environ["TQDM_DISABLE"] = "1"
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
