"""Turbo heads, fitted here to a tiny model's own answers: drafts are taken and refused, answers stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from turbo_dev import host_syncs
from turbo_dev.fitting import Said, fit, words_of
from turbo_runtime.drafters.heads import (
    WEIGHTS_FILE,
    Heads,
    HeadsConfig,
    HeadsDrafter,
    HeadsError,
    Target,
    load_heads,
    save_heads,
)
from turbo_runtime.drafters.interface import Draft, DraftRequest
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.sampling.noise import Noise, answer_key, signed
from turbo_runtime.sampling.rows import DrawnRows, Rule
from turbo_runtime.sampling.search import SEARCH
from turbo_runtime.speculation.verification import verify

VOCABULARY, WIDTH, HEADS, RANK = 61, 32, 3, 8
PROMPT, ANSWER = 6, 24
DIGEST = "sha256:tiny"


class Model:
    """A tiny random transformer, asked for one sequence at a time."""

    def __init__(self) -> None:
        config = LlamaConfig(
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            max_position_embeddings=64,
            initializer_range=0.4,
        )
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
        assert isinstance(model, PreTrainedModel)
        self.network = model.eval().requires_grad_(False)
        self.noise = Noise(VOCABULARY)
        self.target = Target(
            DIGEST,
            model.get_input_embeddings().weight.detach(),
            lambda ids: model.get_output_embeddings().weight.detach()[ids],
        )

    def rows(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits (tokens, vocabulary) and hidden rows (tokens, width)."""
        found = self.network(torch.tensor([list(tokens)]), output_hidden_states=True)
        return found.logits[0], found.hidden_states[-1][0]

    def token(self, logits: Tensor, coupling: tuple[int, float], position: int) -> int:
        rows = DrawnRows([0], [Rule(coupling[1])], [signed(coupling[0])], [position])
        return int(SEARCH.draw(logits[None], rows, self.noise))


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Model()
    torch.set_num_threads(before)


@dataclass
class Run:
    """One answer, and what became of its drafts."""

    tokens: list[int]
    accepted: int = 0
    rejected: int = 0


def answer(model: Model, prompt: Sequence[int], temperature: float, drafters: Proposer, limit: int) -> Run:
    """The engine's loop for one request, without a cache."""
    coupling = (answer_key(7, prompt, 0), temperature)
    run = Run(list(prompt))
    _, hidden = model.rows(run.tokens)
    run.tokens.append(model.token(model.rows(run.tokens)[0][-1], coupling, len(run.tokens)))
    last = hidden[-1]
    while len(run.tokens) < len(prompt) + ANSWER:
        draft = Draft()
        if limit:
            (draft,) = drafters.propose(
                [DraftRequest("r", run.tokens, len(prompt), limit, "", *coupling, last)]
            )
        begin = len(run.tokens)
        logits, hidden = model.rows([*run.tokens, *draft.tokens])
        verdict = verify(
            lambda row, at=begin, rows=logits: model.token(rows[at - 1 + row], coupling, at + row),
            draft.tokens,
            stop_ids=(),
            room=len(prompt) + ANSWER - begin,
        )
        drafters.observe(draft, verdict.tokens)
        last = hidden[begin - 2 + len(verdict.tokens)]
        run.tokens.extend(verdict.tokens)
        run.accepted += verdict.accepted
        run.rejected += verdict.accepted < min(len(draft.tokens), len(verdict.tokens))
    drafters.finish("r", run.tokens, len(prompt), "")
    return run


def prompts(count: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (count, PROMPT), generator=generator).tolist()


@pytest.fixture(scope="module")
def fitted(model: Model) -> Heads:
    plain = Proposer(ActiveDrafts("off"))
    said = [answer(model, prompt, t, plain, 0).tokens for prompt in prompts(12, 1) for t in (0.0, 0.5)]
    known = [Said(tokens[PROMPT:], model.rows(tokens)[1][PROMPT - 1 : -1]) for tokens in said]
    words = words_of(known)[1:]  # one cannot be drafted
    return fit(model.target, known, words, heads=HEADS, markov_rank=RANK, steps=150)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("drafter", ["heads", "auto"])
def test_drafts_are_taken_and_refused_and_answers_are_those_without(
    model: Model, fitted: Heads, drafter: str, temperature: float
) -> None:
    drafters = Proposer(ActiveDrafts(drafter, HeadsDrafter(fitted, model.noise)))  # type: ignore[arg-type]
    accepted = rejected = 0
    for prompt in prompts(3, 1) + prompts(3, 9):
        plain = answer(model, prompt, temperature, Proposer(ActiveDrafts("off")), 0)
        fast = answer(model, prompt, temperature, drafters, 4)
        assert fast.tokens == plain.tokens
        accepted, rejected = accepted + fast.accepted, rejected + fast.rejected
    assert accepted > 5
    assert rejected > 5


def test_a_batch_is_drafted_as_each_want_alone(model: Model, fitted: Heads) -> None:
    source = HeadsDrafter(fitted, model.noise)
    wants = []
    for number, prompt in enumerate(prompts(5, 3)):
        hidden = None if number == 2 else model.rows(prompt)[1][-2]
        coupling = (answer_key(number, prompt, 0), number * 0.4)
        wants.append(DraftRequest(str(number), prompt, PROMPT, 1 + number, "", *coupling, hidden))
    drafters = Proposer(ActiveDrafts("heads", source))
    together = drafters.propose(wants)
    assert [d.tokens for d in together] == [drafters.propose([want])[0].tokens for want in wants]
    assert together[2].tokens == ()
    assert len(together[0].tokens) <= 1
    assert max(len(draft.tokens) for draft in together) <= HEADS


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_all_heads_at_once_guess_what_they_guess_one_after_the_other(
    model: Model, fitted: Heads, temperature: float
) -> None:
    """And ask the device once."""
    sources = [HeadsDrafter(fitted, model.noise, at_once=at_once) for at_once in (False, True)]
    for number, prompt in enumerate(prompts(6, 4)):
        hidden = model.rows(prompt)[1][-2]
        coupling = (answer_key(number, prompt, 0), temperature)
        want = DraftRequest("r", prompt, PROMPT, HEADS, "", *coupling, hidden)
        step_by_step = Proposer(ActiveDrafts("heads", sources[0])).propose([want])
        with host_syncs.counted() as waits:
            assert Proposer(ActiveDrafts("heads", sources[1])).propose([want]) == step_by_step
        assert waits.total() == 1


def test_a_draft_that_leaves_the_chain_of_the_heads_gets_no_more_from_it(model: Model, fitted: Heads) -> None:
    (prompt,) = prompts(1, 4)
    source = HeadsDrafter(fitted, model.noise, at_once=True)
    want = DraftRequest("r", prompt, PROMPT, HEADS, "", 1, 0.0, model.rows(prompt)[1][-2])
    source.begin([want, want])
    first = source.next_candidates([0.0, 1.0])
    assert first[0] is not None
    assert first[1] is None, "another drafter is sure"
    source.advance([first[0].token, 1 - first[0].token])
    second = source.next_candidates([0.0, 0.0])
    assert second[0] is not None
    assert second[1] is None


def test_with_the_targets_own_law_the_coupled_draft_is_what_the_engine_draws(model: Model) -> None:
    """Heads as they begin say what the LM head says of the row that they are given: here, the next one."""
    ids = torch.arange(VOCABULARY)
    heads = Heads(
        model.target.embedding, model.target.output_rows(ids), ids, heads=1, markov_rank=RANK
    ).eval()
    drafters = Proposer(ActiveDrafts("heads", HeadsDrafter(heads, model.noise)))
    for number, prompt in enumerate(prompts(20, 5)):
        logits, hidden = model.rows(prompt)
        coupling = (answer_key(number, prompt, 0), number % 5 * 0.4)
        (draft,) = drafters.propose([DraftRequest("r", prompt, PROMPT, 4, "", *coupling, hidden[-1])])
        assert draft.tokens == (model.token(logits[-1], coupling, PROMPT),)


def config(heads: Heads, /, **fields: object) -> HeadsConfig:
    whole = HeadsConfig(
        version="7",
        heads=HEADS,
        width=WIDTH,
        markov_rank=RANK,
        vocabulary_size=len(heads.vocabulary),
        target_vocabulary_size=VOCABULARY,
        target_digest=DIGEST,
        domain="tests",
        training={"prompts": 12},
    )
    return replace(whole, **fields)  # type: ignore[arg-type]


def test_what_is_saved_is_what_is_loaded(model: Model, fitted: Heads, tmp_path: Path) -> None:
    save_heads(tmp_path / "heads", config(fitted), fitted)
    found, heads = load_heads(tmp_path / "heads", model.target)
    assert found == config(fitted)
    assert torch.equal(heads.vocabulary, fitted.vocabulary)
    for name, value in fitted.state_dict().items():
        assert torch.equal(heads.state_dict()[name], value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"target_digest": "sha256:other"}, "these heads belong to the model sha256:other"),
        ({"width": 64}, "width is 64 and the model has 32"),
        ({"target_vocabulary_size": 99}, "target_vocabulary_size is 99 and the model has 61"),
        ({"format": 2}, "format 2 is unknown, this version reads 1"),
        ({"kind": "eagle3"}, 'kind is not "turbo-heads"'),
        ({"heads": 4}, "heads.safetensors: block is (3, 32, 32) and its configuration wants (4, 32, 32)"),
        ({"heads": 0}, "heads cannot be 0"),
        ({"markov_rank": 1 << 50}, "its configuration wants (3, 1125899906842657)"),
        ({"vocabulary_size": 7}, "vocabulary must be 7 ascending token ids"),
        ({"version": 3}, "version cannot be 3"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    model: Model, fitted: Heads, tmp_path: Path, fields: dict[str, object], said: str
) -> None:
    save_heads(tmp_path, config(fitted, **fields), fitted)
    with pytest.raises(HeadsError, match="; ") as refused:
        load_heads(tmp_path, model.target)
    assert said in str(refused.value)


def test_a_file_that_is_copied_over_while_it_is_in_use_takes_nothing_from_the_engine(
    model: Model, fitted: Heads, tmp_path: Path
) -> None:
    save_heads(tmp_path, config(fitted), fitted)
    loaded = load_heads(tmp_path, model.target)
    assert str(tmp_path / WEIGHTS_FILE) not in Path("/proc/self/maps").read_text()
    assert loaded


@pytest.mark.parametrize("name", ["config.json", "heads.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"[[[", b"\x00" * 64])
def test_a_missing_or_broken_file_is_refused_in_a_sentence(
    model: Model, fitted: Heads, tmp_path: Path, name: str, content: bytes | None
) -> None:
    save_heads(tmp_path, config(fitted), fitted)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(HeadsError, match=r"cannot be read: .*; "):
        load_heads(tmp_path, model.target)


def test_weights_that_are_no_numbers_are_refused(model: Model, fitted: Heads, tmp_path: Path) -> None:
    broken = Heads(
        fitted.embedding, fitted.output, fitted.vocabulary, heads=HEADS, markov_rank=RANK
    ).requires_grad_(False)
    broken.block_bias[0, 0] = torch.nan
    save_heads(tmp_path, config(fitted), broken)
    with pytest.raises(HeadsError, match="no numbers"):
        load_heads(tmp_path, model.target)
