"""SmolLM2-135M, cut up among two processes as its 3 KV heads allow, in a few texts of the benchmark."""

from __future__ import annotations

import pytest
import torch
from tensor_parallel import compare


@pytest.mark.model
def test_two_ranks_write_the_texts_of_one_and_have_about_half_of_its_weights() -> None:
    before = torch.get_num_threads()
    try:
        figures, rows = compare(count=4, max_tokens=12, threads=1, guarantee="distribution")
    finally:
        torch.set_num_threads(before)
    assert figures["differences_beyond_rounding"] == 0
    assert figures["equal_texts"] >= 3
    assert figures["largest_weights_share"] < 0.55
    assert [len(row["weights_mib"]) for row in rows] == [1, 2]
