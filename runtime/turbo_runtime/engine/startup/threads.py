"""How the engine's threads wait, settled before torch is imported: afterwards the OpenMP runtime no longer
reads it.
"""

from __future__ import annotations

import os


def settle_threads(threads: int | None) -> None:
    """Fix the number of threads (None: as many as allowed cores) and let idle ones sleep.

    By default a thread that waits for its siblings spins. On a core that it shares with anything else, it
    then burns the very time that the sibling needs: with four busy neighbours on two cores a step took twenty
    times as long as with sleeping threads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
