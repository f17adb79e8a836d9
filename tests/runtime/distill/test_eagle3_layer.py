"""The layer that is trained at all places at once guesses what it would guess drafting a token at a time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from turbo_runtime.distill.data.examples import Text, TrainingExamples
from turbo_runtime.distill.data.responses import Completion, TokenizedPrompt
from turbo_runtime.distill.eagle3 import STREAMS, Eagle3, Eagle3Student
from turbo_runtime.distill.recipe import Recipe
from turbo_runtime.distill.trainer import Shards, Training, read_state
from turbo_runtime.drafters.heads import tensors_digest

WIDTH, WORDS, DEPTH = 24, 12, 3
RECIPE = Recipe(method="eagle3", depth=DEPTH, epochs=4, rows=40, rate=0.01)
CONFIG = LlamaConfig(
    vocab_size=WORDS,
    hidden_size=WIDTH,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
)


def drafted(seed: int = 0) -> Eagle3:
    torch.manual_seed(seed)
    embedding, output = torch.randn(WORDS, WIDTH), torch.randn(WORDS, WIDTH)
    return Eagle3(CONFIG, embedding, output, torch.arange(WORDS))


def digest_of(student: Eagle3Student) -> str:
    return tensors_digest(student.module, student.vocabulary)


class Sequential:
    """As an engine drafts: keys and values of what was seen, one place at a time."""

    def __init__(self, draft: Eagle3) -> None:
        self.draft = draft
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def see(self, token: int, state: Tensor) -> tuple[Tensor, Tensor]:
        """-> the state that goes out, and logits."""
        (block,) = self.draft.layers
        attention = block.self_attn
        embedded = self.draft.embedding[token][None]
        x = torch.cat([block.input_layernorm(embedded), block.hidden_norm(state[None])], -1)
        cos, sin = self.draft._rotary(x, torch.tensor([[len(self.keys)]]))
        query = attention.q_proj(x).view(1, 1, -1, attention.head_dim).transpose(1, 2)
        key = attention.k_proj(x).view(1, 1, -1, attention.head_dim).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        self.keys.append(key)
        self.values.append(attention.v_proj(x).view(1, 1, -1, attention.head_dim).transpose(1, 2))
        found = F.scaled_dot_product_attention(
            query, torch.cat(self.keys, 2), torch.cat(self.values, 2), enable_gqa=True
        )
        left = state + attention.o_proj(found.transpose(1, 2).flatten(2))[0, 0]
        left = left + block.mlp(block.post_attention_layernorm(left[None]))[0]
        return left, (self.draft.norm(left[None]) @ self.draft.output.T)[0]


@torch.inference_mode()
def test_at_all_places_at_once_it_guesses_as_in_drafting_one_token_at_a_time() -> None:
    draft = drafted()
    count, rows = 11, 5
    streams = torch.randn(count, STREAMS * WIDTH)
    tokens = torch.randint(WORDS, (count + DEPTH,))
    before = torch.stack([tokens[count - rows + step : count + step] for step in range(DEPTH)], 1)
    told = draft(streams, tokens[:count], before)
    for row in range(rows):
        engine = Sequential(draft)
        at = count - rows + row
        for place in range(at + 1):
            state, logits = engine.see(int(tokens[place]), draft.fc(streams[place][None])[0])
        for step in range(DEPTH):
            if step:
                state, logits = engine.see(int(before[row, step]), state)
            torch.testing.assert_close(told[row, step], logits)


def test_it_does_not_see_what_comes_later() -> None:
    draft = drafted()
    streams, tokens = torch.randn(9, STREAMS * WIDTH), torch.randint(WORDS, (9,))
    before = tokens[4:9, None].expand(5, DEPTH).clone()
    first = draft(streams, tokens, before)
    streams[6:], tokens[6:] = 0, 0
    again = draft(streams, tokens, before)
    assert torch.equal(first[:2], again[:2])  # places 4 and 5
    assert not torch.equal(first[2:], again[2:])


def answers(count: int, first: int) -> list[Completion]:
    """Each counts up in a step of its own, that only its prompt tells."""
    return [
        Completion(
            TokenizedPrompt("training", "d", (number % 3, number % WORDS)),
            tuple((number + (1 + number % 3) * at) % WORDS for at in range(1, 10)),
        )
        for number in range(first, first + count)
    ]


def read(said: list[Completion]) -> list[Text]:
    """Streams that tell nothing: attention to the prompt must."""
    texts = []
    for one in said:
        text = (*one.request.prompt, *one.tokens)
        streams = torch.zeros(len(text) - 1, STREAMS * WIDTH)
        streams[0, text[0]] = 5.0
        chances = torch.full((len(one.tokens), 1), 0.9)
        likely = torch.tensor(one.tokens)[:, None].int()
        texts.append(
            Text.of(
                one,
                streams,
                TrainingExamples.of(streams[-len(one.tokens) :], [one.tokens], likely, chances),
                0,
            )
        )
    return texts


@pytest.fixture
def one_thread() -> None:
    torch.set_num_threads(1)


def training(draft: Eagle3) -> Training:
    student = Eagle3Student(draft, RECIPE)
    method = SimpleNamespace(rows=lambda one: 11, read=lambda said: read(list(said)))
    shards = Shards(method, answers(72, 0), 400, 0)
    assert len(shards.parts) > 1
    return Training(student, shards, lambda: read(answers(24, 72)), RECIPE)


@pytest.mark.usefixtures("one_thread")
def test_it_learns_what_only_the_prompt_tells() -> None:
    trained = training(drafted())
    trained.run(lambda _: None)
    assert trained.progress.judged[-1] > 2.5  # of 4 at most; the token alone tells one in three
    assert trained.progress.losses[-1] < 0.5 * trained.progress.losses[0]


@pytest.mark.usefixtures("one_thread")
def test_broken_off_and_gone_on_with_it_comes_to_the_same_bits(tmp_path: Path) -> None:
    whole = training(drafted())
    whole.run(lambda _: None)
    for at in (1, 3, whole.steps // 2, whole.steps - 1):
        broken = training(drafted())

        def done(step: int, at: int = at, broken: Training = broken) -> None:
            if step == at:
                broken.save(tmp_path / "state.pt")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            broken.run(done)
        last = training(drafted())
        last.load(read_state(tmp_path / "state.pt"))
        last.run(lambda _: None)
        assert isinstance(last.student, Eagle3Student)
        assert isinstance(whole.student, Eagle3Student)
        assert digest_of(last.student) == tensors_digest(whole.student.module, whole.student.vocabulary), at
        assert last.progress == whole.progress
