"""What a draft learnt from is drafted from the first request on, by those who may, and replaced with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from turbo_runtime.drafters import draft_memory
from turbo_runtime.drafters.draft_memory import (
    MEMORY_FILE,
    Answer,
    DraftMemory,
    DraftMemoryError,
    read_memory,
    select_answers,
    write_memory,
)
from turbo_runtime.drafters.heads import Heads, HeadsConfig, Target, save_heads
from turbo_runtime.drafters.interface import DraftRequest
from turbo_runtime.drafters.loader import DraftLoader
from turbo_runtime.drafters.proposer import Guarded, propose
from turbo_runtime.drafters.suffix import Memory, SuffixDrafter
from turbo_runtime.sampling.noise import Noise

VOCABULARY, WIDTH, DIGEST = 40, 8, "sha256:x"
OURS, THEIRS = (1, 2, 3, 4, 5), (6, 7, 8, 9, 10)
MEMORY = DraftMemory((Answer(OURS), Answer(THEIRS, "alice"), Answer((11, 12), "bob")))
ROWS = torch.linspace(-1, 1, VOCABULARY * WIDTH).view(VOCABULARY, WIDTH)
TARGET = Target(DIGEST, ROWS, lambda ids: ROWS[ids])


def drafts(suffix: SuffixDrafter, tokens: Sequence[int], scope: str = "") -> tuple[int, ...]:
    request = DraftRequest(f"{scope}{tokens}", tokens, len(tokens), 2, scope, 0, 0.0)
    return propose([Guarded(suffix)], [request])[0].tokens


def brought(*memories: DraftMemory) -> SuffixDrafter:
    suffix = SuffixDrafter()
    suffix.memory.bring(memories)
    while suffix.waiting:
        suffix.read(3)
    return suffix


# -- the file ---------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_memory(tmp_path, DIGEST, VOCABULARY) is None
    write_memory(tmp_path, MEMORY, DIGEST)
    read = read_memory(tmp_path, DIGEST, VOCABULARY)
    assert read is not None
    assert read.answers == MEMORY.answers
    assert read.summary() == {"answers": 3, "shared": 1, "tokens": 12}


def test_each_answer_is_kept_once_those_for_all_first_within_the_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    several = [Answer(OURS, "alice"), Answer(THEIRS, "alice"), Answer(OURS), Answer(OURS), Answer(THEIRS)]
    assert select_answers(several, 1).answers == (Answer(OURS), Answer(THEIRS))
    long = Answer(tuple(range(1000)))
    kept = select_answers([long, Answer(OURS), Answer(THEIRS, "alice")], 4 * 14 / 2**20)
    assert kept.answers == (Answer(OURS), Answer(THEIRS, "alice"))
    assert select_answers([long], 0).answers == ()
    monkeypatch.setattr(draft_memory, "MAX_TOKENS", 9)
    assert select_answers([Answer(OURS), Answer(THEIRS), Answer(THEIRS, "bob")], 1).answers == (
        Answer(OURS),
        Answer(THEIRS, "bob"),
    )


def changed(**columns: object) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        tensors: dict[str, Any] = load_file(file)
        tensors |= {name: np.asarray(column) for name, column in columns.items()}
        save_file(tensors, file, metadata={"target_digest": DIGEST, "tenants": json.dumps(["alice", "bob"])})

    return change


def short(count: int) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(file.read_bytes()[:count])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (short(0), "cannot be read"),
        (short(90), "cannot be read"),
        (lambda file: file.write_bytes(b"x" * (3 << 20)), "is larger than 2 MiB"),
        (changed(tokens=np.full(12, VOCABULARY, np.int32)), "does not hold answers in tokens of this model"),
        (changed(tokens=np.full(12, -1, np.int32)), "does not hold answers"),
        (changed(tokens=np.zeros(12)), "does not hold answers"),
        (changed(lengths=np.array([5, 5, 3], np.int32)), "does not hold answers"),
        (changed(lengths=np.array([-5, 15, 2], np.int32)), "does not hold answers"),
        (changed(owners=np.array([-1, 0, 2], np.int32)), "does not hold answers"),
        (changed(owners=np.array([-1, 0], np.int32)), "does not hold answers"),
        (lambda file: save_file(load_file(file), file), "is of another model: None and not sha256:x"),
        (lambda file: save_file({"tokens": np.zeros(1)}, file), "cannot be read"),
    ],
)
def test_a_file_that_is_no_memory_of_this_model_is_a_sentence(
    damage: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    write_memory(tmp_path, MEMORY, DIGEST)
    damage(tmp_path / MEMORY_FILE)
    with pytest.raises(DraftMemoryError, match=said) as caught:
        read_memory(tmp_path, DIGEST, VOCABULARY)
    assert str(caught.value).endswith("or remove the file to draft without its answers")


# -- who drafts from it -----------------------------------------------------------------------------------


def test_answers_for_all_are_drafted_by_all_and_a_tenants_by_it_alone_without_a_salt() -> None:
    suffix = brought(MEMORY)
    for scope in ("", "alice", "carol", "alice\nsalt"):
        assert drafts(suffix, (20, 1, 2), scope) == (3, 4)
        assert drafts(suffix, (20, 6, 7), scope) == ((8, 9) if scope == "alice" else ())


def test_traffic_is_read_first_and_its_answers_are_not_among_those_of_drafts() -> None:
    suffix = SuffixDrafter()
    suffix.memory.bring([MEMORY])
    suffix.finish("r", (30, 31, 32, 33), 1, "alice")
    suffix.read(4)
    assert drafts(suffix, (20, 30, 31), "alice") == (32, 33)
    assert drafts(suffix, (20, 30, 31), "bob") == ()
    assert drafts(suffix, (20, 1, 2), "alice") == ()
    assert suffix.waiting


def test_what_another_draft_brings_replaces_it_and_gives_its_memory_back() -> None:
    suffix = brought(MEMORY)
    suffix.memory.bring([DraftMemory((Answer((1, 2, 30, 31)),))])
    while suffix.waiting:
        suffix.read(100)
    assert drafts(suffix, (20, 1, 2)) == (30, 31)
    assert drafts(suffix, (20, 6, 7), "alice") == ()
    suffix.memory.bring([])
    assert drafts(suffix, (20, 1, 2)) == ()
    assert not suffix.memory.has_unread
    assert suffix.memory.num_bytes == 0


def test_what_is_brought_teaches_how_often_such_matches_are_right() -> None:
    def confidence(memory: DraftMemory) -> float:
        request = DraftRequest("r", (30, 1, 2), 3, 1, "", 0, 0.0)
        return propose([Guarded(brought(memory))], [request])[0].cumulative_acceptance[0]

    once = Answer((1, 2, 3))
    steady = [Answer((n, n + 1, n + 2)) for n in range(4, 28, 4) for _ in range(2)]
    fickle = [Answer((n, n + 1, n + 2 + end)) for n in range(4, 28, 4) for end in range(2)]
    said = [confidence(DraftMemory((*others, once))) for others in (fickle, [], steady)]
    assert said == sorted(set(said))


def test_it_counts_within_the_bound_of_all_memory() -> None:
    memory = Memory(max_bytes=200_000)
    memory.bring([DraftMemory(tuple(Answer(tuple(range(n, n + 900)), f"t{n}") for n in range(20)))])
    while memory.has_unread:
        memory.read(500)
        assert memory.num_bytes <= 200_000


# -- the loader -------------------------------------------------------------------------------------------


def write_draft(folder: Path, memory: DraftMemory | None, version: str = "1") -> None:
    ids = torch.arange(20)
    heads = Heads(TARGET.embedding, TARGET.output_rows(ids), ids, heads=2, markov_rank=4)
    save_heads(folder, HeadsConfig(version, 2, WIDTH, 4, 20, VOCABULARY, DIGEST), heads)
    if memory is not None:
        write_memory(folder, memory, DIGEST)


def select(tmp_path: Path, **document: object) -> Path:
    file = tmp_path / "drafts.json"
    file.write_text(json.dumps(document))
    return file


def test_drafts_bring_theirs_the_deployments_own_last_and_one_that_fails_keeps_the_one_before(
    tmp_path: Path,
) -> None:
    named = DraftMemory((Answer((20, 21, 22)),))
    memories: Mapping[str, DraftMemory | None] = {"own": MEMORY, "latex": named, "plain": None}
    for name, memory in memories.items():
        write_draft(tmp_path / name, memory)
    loader = DraftLoader(TARGET, Noise(VOCABULARY))
    active = loader.load(select(tmp_path, heads="own", named={"latex": "latex", "plain": "plain"}))
    assert [memory.answers for memory in active.memories] == [named.answers, MEMORY.answers]
    assert loader.load(tmp_path / "drafts.json") == active  # nothing is read twice
    failed = loader.load(select(tmp_path, heads="gone", named={}))
    assert failed.memories == active.memories[1:]
    assert loader.load(select(tmp_path, drafter="suffix")).memories == ()


def test_a_damaged_memory_is_a_problem_and_the_draft_is_in_use(tmp_path: Path) -> None:
    write_draft(tmp_path / "own", MEMORY)
    (tmp_path / "own" / MEMORY_FILE).write_bytes(b"no tensors")
    loader, file = DraftLoader(TARGET, Noise(VOCABULARY)), select(tmp_path, heads="own")
    for _ in range(2):
        active = loader.load(file)
        assert active.heads is not None
        assert active.memories == ()
        assert "memory.st cannot be read" in active.problem
    write_memory(tmp_path / "own", MEMORY, DIGEST)
    assert loader.load(file).problem == ""
