"""A deployment has several trained drafts: each is loaded, asked, taught and refused by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from turbo_dev.server_process import PATIENCE
from turbo_runtime.contract.config import DraftMethod
from turbo_runtime.drafters import loader as loading
from turbo_runtime.drafters.heads import Heads, HeadsConfig, save_heads
from turbo_runtime.drafters.interface import Draft, Drafter, DraftRequest, TokenCandidate, TokenOrigin
from turbo_runtime.drafters.loader import (
    LOOK_SECONDS,
    MAX_NAMED,
    RETRY_SECONDS,
    ActiveDrafts,
    DraftLoader,
    SelectionError,
    WatchedFile,
    read_selection,
)
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.drafters.target import Target
from turbo_runtime.sampling.noise import Noise

VOCABULARY, WIDTH = 40, 8
ROWS = torch.linspace(-1, 1, VOCABULARY * WIDTH).view(VOCABULARY, WIDTH)
TARGET = Target("sha256:x", ROWS, lambda ids: ROWS[ids])
TOKENS = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3]


def write_heads(folder: Path, version: str, digest: str = TARGET.digest) -> None:
    ids = torch.arange(20)
    heads = Heads(TARGET.embedding, TARGET.output_rows(ids), ids, heads=2, markov_rank=4)
    save_heads(folder, HeadsConfig(version, 2, WIDTH, 4, 20, VOCABULARY, digest), heads)


def loader() -> DraftLoader:
    return DraftLoader(TARGET, Noise(VOCABULARY))


def want(name: str, request_id: str = "r", drafting: DraftMethod = "auto") -> DraftRequest:
    hidden = torch.ones(WIDTH)
    return DraftRequest(request_id, TOKENS, 1, 4, "", 0, 0.0, hidden, drafting, name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One that names three drafts, all of which are there."""
    for name in ("chat", "latex", "json"):
        write_heads(tmp_path / name, f"{name}-1")
    return select(tmp_path, heads="chat", named={"latex": "latex", "json": "json"})


def select(folder: Path, **selection: object) -> Path:
    found = folder / "drafts.json"
    found.write_text(json.dumps(selection))
    return found


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (["latex"], "named must be an object of names and folders, not ['latex']"),
        ({"latex": 3}, "named.latex must be the path of a folder, or"),
        ({"latex": ""}, "for the model's first N layers, not ''"),
        ({"default": "latex"}, "named cannot have 'default'"),
        ({"": "latex"}, "named cannot have ''"),
        ({"La Tex": "latex"}, "named cannot have 'La Tex'"),
        ({"-latex": "latex"}, "named cannot have '-latex'"),
        ({"latex\n": "latex"}, "named cannot have 'latex\\n'"),
        ({"x" * 64: "latex"}, "up to 63 lower-case letters"),
        ({f"n{i}": "x" for i in range(MAX_NAMED + 1)}, f"named has 9 drafts; keep {MAX_NAMED} at most"),
    ],
)
def test_names_that_cannot_be_followed_are_refused_in_a_sentence(
    tmp_path: Path, named: object, said: str
) -> None:
    with pytest.raises(SelectionError) as refused:
        read_selection(select(tmp_path, named=named))
    assert said in str(refused.value)


def test_folders_of_names_count_from_the_files_own(tmp_path: Path) -> None:
    named = read_selection(select(tmp_path, named={"latex": "a/b", "7": "/c"})).named
    assert named == {"latex": tmp_path / "a/b", "7": Path("/c")}


def missing(folder: Path) -> None:
    (folder / "heads.safetensors").unlink()


def truncated(folder: Path) -> None:
    weights = folder / "heads.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def other_model(folder: Path) -> None:
    write_heads(folder, "other", "sha256:y")


def no_numbers(folder: Path) -> None:
    tensors = load_file(folder / "heads.safetensors")
    tensors["block_bias"][0, 0] = float("nan")
    save_file(tensors, folder / "heads.safetensors")


BREAKS: dict[Callable[[Path], None], str] = {
    missing: "cannot be read",
    truncated: "cannot be read",
    other_model: "belong to the model sha256:y",
    no_numbers: "has values that are no numbers",
}


@pytest.mark.parametrize("break_it", BREAKS)
def test_one_that_is_broken_is_refused_and_the_others_are_used(
    file: Path, tmp_path: Path, break_it: Callable[[Path], None]
) -> None:
    break_it(tmp_path / "latex")
    found = loader().load(file)
    assert found.version == "chat-1"
    assert {name: trained.version for name, trained in found.named.items()} == {"json": "json-1"}
    assert found.problem.startswith(f"the draft latex: {tmp_path / 'latex'}")
    assert BREAKS[break_it] in found.problem


@pytest.mark.parametrize("break_it", BREAKS)
def test_one_that_is_broken_later_stays_as_it_was(
    file: Path, tmp_path: Path, break_it: Callable[[Path], None]
) -> None:
    load = loader().load
    before = load(file)
    write_heads(tmp_path / "latex-2", "latex-2")
    break_it(tmp_path / "latex-2")
    write_heads(tmp_path / "json-2", "json-2")
    found = load(select(tmp_path, heads="chat", named={"latex": "latex-2", "json": "json-2"}))
    assert found.named["latex"] is before.named["latex"]
    assert found.named["json"].version == "json-2"
    assert found.heads is before.heads
    assert "the draft latex: " in found.problem
    assert load(select(tmp_path, heads="chat")).named == {}


def test_a_broken_default_stays_as_it_was_and_the_others_are_taken_up(file: Path, tmp_path: Path) -> None:
    load = loader().load
    before = load(file)
    write_heads(tmp_path / "sql", "sql-1")
    found = load(select(tmp_path, drafter="heads", heads="nowhere", version="v9", named={"sql": "sql"}))
    assert (found.drafter, found.heads, found.version) == ("auto", before.heads, "chat-1")
    assert list(found.named) == ["sql"]
    assert found.problem.startswith(f"{tmp_path / 'nowhere/config.json'} cannot be read")


def test_a_default_that_cannot_be_loaded_at_the_start_leaves_what_was_to_draft_until_then(
    tmp_path: Path,
) -> None:
    write_heads(tmp_path / "latex", "latex-1")
    file = select(tmp_path, heads="nowhere", named={"latex": "latex"})
    found = DraftLoader(TARGET, Noise(VOCABULARY), "suffix").load(file)
    assert (found.drafter, found.heads, list(found.named)) == ("suffix", None, ["latex"])


def test_an_unforeseen_failure_of_one_is_no_failure_of_the_others(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = loading.load_heads

    def no_room(folder: Path, target: Target) -> tuple[HeadsConfig, Heads]:
        if folder == tmp_path / "json":
            raise MemoryError("no room")
        return real(folder, target)

    monkeypatch.setattr(loading, "load_heads", no_room)
    found = loader().load(file)
    assert list(found.named) == ["latex"]
    assert found.problem == "the draft json: loading failed: MemoryError: no room"


def test_only_what_is_another_one_is_loaded_again(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded: list[str] = []
    real = loading.load_heads

    def counted(folder: Path, target: Target) -> tuple[HeadsConfig, Heads]:
        loaded.append(folder.name)
        return real(folder, target)

    monkeypatch.setattr(loading, "load_heads", counted)
    load = loader().load
    first = load(file)
    assert loaded == ["chat", "latex", "json"]
    second = load(select(tmp_path, heads="chat", named={"latex": "latex", "data": "json"}))
    assert loaded == ["chat", "latex", "json"]
    assert second.named["data"] is first.named["json"]
    write_heads(tmp_path / "latex", "latex-2")
    assert load(tmp_path / "drafts.json").named["latex"].version == "latex-2"
    assert loaded == ["chat", "latex", "json", "latex"]
    load(select(tmp_path, heads="chat"))
    load(file := select(tmp_path, heads="chat", named={"data": "json"}))  # what was let go comes anew
    assert loaded == ["chat", "latex", "json", "latex", "json"]
    assert load(file).problem == ""


def test_a_folder_that_comes_later_is_taken_up_and_the_others_are_left_alone(
    file: Path, tmp_path: Path
) -> None:
    select(tmp_path, heads="chat", named={"latex": "latex", "late": "late"})
    watched = WatchedFile(file, loader().load)
    drafters = Proposer(watched.wait(0.0), file=watched)
    assert list(drafters.versions) == ["default", "latex"]
    assert "the draft late: " in drafters.problem
    write_heads(tmp_path / "late", "late-1")
    assert watched.wait(LOOK_SECONDS) is None
    again = watched.wait(RETRY_SECONDS + LOOK_SECONDS)
    assert again is not None
    assert list(again.named) == ["latex", "late"]
    assert again.heads is drafters._active.heads
    assert drafters.problem == ""


@dataclass(eq=False)
class Recorder(Drafter):
    """Offers one token after anything, and keeps what it was asked and taught."""

    token: int
    name: str = "heads"
    is_costly: bool = True
    reads_hidden: bool = True
    version: str = "v1"
    sureness: float = 0.999
    asked: list[list[str]] = field(default_factory=list)
    taught: list[bool] = field(default_factory=list)
    broken: bool = False

    def begin(self, wants: Sequence[DraftRequest]) -> None:
        if self.broken:
            raise ArithmeticError("too large")
        self.asked.append([want.request_id for want in wants])

    def next_candidates(self, _best_confidence: Sequence[float]) -> list[TokenCandidate | None]:
        return [TokenCandidate(self.token, self.sureness, self.token) for _ in self.asked[-1]]

    def advance(self, tokens: Sequence[int | None]) -> None:
        """Whatever was drafted, it goes on alike."""

    def learn(self, cell: Hashable, accepted: bool) -> None:
        assert cell == self.token
        self.taught.append(accepted)


def recorders(default: Recorder, **named: Recorder) -> Proposer:
    return Proposer(ActiveDrafts("heads", default, "v1", named))  # type: ignore[arg-type]


def test_requests_that_have_one_draft_are_asked_for_together() -> None:
    default, latex, idle = Recorder(30), Recorder(31), Recorder(32)
    drafters = recorders(default, latex=latex, idle=idle)
    names = ["latex", "default", "dropped", "latex", "default"]
    drafts = drafters.propose([want(name, f"r{i}") for i, name in enumerate(names)])
    assert [draft.tokens[0] for draft in drafts] == [31, 30, 30, 31, 30]
    assert [draft.name for draft in drafts] == ["latex", "default", "default", "latex", "default"]
    assert (default.asked, latex.asked, idle.asked) == ([["r1", "r2", "r4"]], [["r0", "r3"]], [])


def test_what_became_of_a_draft_teaches_who_made_it() -> None:
    default, latex = Recorder(30), Recorder(31)
    drafters = recorders(default, latex=latex)
    first, second = drafters.propose([want("latex"), want("default")])
    drafters.observe(first, [31, 31, 9])
    assert (default.taught, latex.taught) == ([], [True, True, False])
    drafters.observe(second, [30])
    assert (default.taught, latex.taught) == ([True], [True, True, False])


@pytest.mark.parametrize(("sure", "surest"), [(0.6, "suffix"), (0.95, "heads")])
def test_who_was_outbid_learns_as_well_up_to_the_first_token_that_was_wrong(sure: float, surest: str) -> None:
    memory, heads = Recorder(30, "suffix", is_costly=False, sureness=0.8), Recorder(31, sureness=sure)
    drafters = Proposer(ActiveDrafts("auto", heads, "v1"), suffix=memory)  # type: ignore[arg-type]
    (draft,) = drafters.propose([want("default")])
    assert {origin.source for origin in draft.origins} == {surest}
    drafters.observe(draft, [draft.tokens[0], 30, 9])
    assert memory.taught == [surest == "suffix", True, *([False] if surest == "suffix" else [])]
    assert heads.taught == [surest == "heads", False, *([False] if surest == "suffix" else [])]


def test_what_is_known_of_a_draft_that_was_dropped_teaches_nobody() -> None:
    default = Recorder(30)
    recorders(default).observe(Draft((31,), (0.9,), (TokenOrigin("heads", 31),), "dropped"), [31])
    assert default.taught == []


def test_a_request_that_wants_no_heads_has_none_whatever_it_chose() -> None:
    latex = Recorder(31)
    drafters = recorders(Recorder(30), latex=latex)
    (draft,) = drafters.propose([want("latex", drafting="suffix")])
    assert {origin.source for origin in draft.origins} == {"suffix"}
    assert drafters.propose([want("latex", drafting="off")]) == [Draft(name="latex")]
    assert latex.asked == []


def test_where_the_deployment_has_no_trained_draft_a_named_one_is_there_all_the_same() -> None:
    latex = Recorder(31)
    drafters = Proposer(ActiveDrafts("auto", named={"latex": latex}))  # type: ignore[arg-type]
    assert drafters.reads_hidden
    assert drafters.versions == {"default": "", "latex": "v1"}
    first, second = drafters.propose([want("latex"), want("default")])
    assert {origin.source for origin in first.origins} == {"heads"}
    assert {origin.source for origin in second.origins} == {"suffix"}


def test_one_that_fails_is_told_by_its_name_and_the_others_draft_on() -> None:
    default, latex = Recorder(30), Recorder(31, broken=True)
    drafters = recorders(default, latex=latex)
    first, second = drafters.propose([want("latex"), want("default")])
    assert first.tokens == ()
    assert second.tokens[0] == 30
    assert drafters.problem == "the drafter heads of the draft latex failed: ArithmeticError: too large"


def test_a_look_that_finds_the_same_does_not_try_again_what_failed(file: Path, tmp_path: Path) -> None:
    select(tmp_path, heads="chat", named={"late": "late"})
    watched = WatchedFile(file, loader().load)
    drafters = Proposer(watched.wait(0.0), file=watched)
    guards = drafters._guards
    watched._look_at = watched._retry_at = 0.0  # it is due
    drafters.poll(1.0)
    assert watched._loading is not None
    watched._loading.result(PATIENCE)
    drafters.poll(1.0)
    assert watched._loading is None
    assert drafters._guards is guards
