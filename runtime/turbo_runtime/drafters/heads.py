"""Turbo heads: a few small layers on the target's last hidden state, one for each of the next tokens.
Training writes their checkpoint; the engine reads it or rejects it in one sentence, and packs the heads.

A checkpoint is a folder of `config.json` (`HeadsConfig`) and `heads.safetensors`: `vocabulary` (V,) int64,
the ids of the target that the heads can draft, ascending; and the parameters of `Heads` by name. No row of
the target's embedding or LM head is stored: a checkpoint is of use with the one model that it names.

Head j guesses the token j + 1 places behind the last committed one, from the hidden state h that the last
committed one was drawn from and from the token right before the guessed one:

    x_j = h + SiLU(W_j h + b_j)                        (Medusa; Cai et al., arXiv 2401.10774)
    m   = A e(token before)                            e: the target's embedding
    logits_j = E x_j + B m                             E: rows of the target's LM head; the Markov term
    confidence_j = c_j [x_j, m, f] + d_j               f: log-odds of the likeliest token; a logit

The Markov term follows the growing draft (as in Hydra, arXiv 2402.05109). A confidence is that of the drafted
token, given all before it accepted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from turbo_runtime.drafters.interface import SURE, Drafter, DraftRequest, TokenCandidate
from turbo_runtime.drafters.target import Target
from turbo_runtime.files import read_object, write_whole, write_whole_by
from turbo_runtime.models.matmul import FREE_FORMS, BatchInvariantLinear
from turbo_runtime.models.transfer import download, upload
from turbo_runtime.sampling.noise import Noise, position_key

KIND = "turbo-heads"
FORMAT = 1  # of the folder; another number, another reader
CONFIG_FILE, WEIGHTS_FILE = "config.json", "heads.safetensors"
_VOCABULARY = "vocabulary"
CERTAIN = 1 - 1e-6  # the highest probability with its own odds
# Likeliest tokens that get noise: a colder one wins seldom, and then the draft is wrong.
_HOTTEST = 64


class Heads(nn.Module):
    """Parameters are the heads' own; the target's rows are shared and never trained or stored."""

    embedding: Tensor
    output: Tensor
    vocabulary: Tensor

    def __init__(
        self, embedding: Tensor, output: Tensor, vocabulary: Tensor, *, heads: int, markov_rank: int
    ) -> None:
        """`embedding` (target vocabulary, width); `output` (V, width), the LM head's rows of `vocabulary`
        (V,) int64, ascending ids of the target.
        """
        super().__init__()
        device = embedding.device
        width = embedding.shape[1]
        shapes = shapes_of(width, len(vocabulary), heads, markov_rank)
        self.register_buffer("embedding", embedding, persistent=False)
        self.register_buffer("output", output, persistent=False)
        self.register_buffer("vocabulary", vocabulary.to(device), persistent=False)
        self.heads = heads
        # zeros: at first every head equals the LM head
        self.block = nn.Parameter(torch.zeros(shapes["block"], device=device))
        self.block_bias = nn.Parameter(torch.zeros(shapes["block_bias"], device=device))
        self.markov_in = nn.Parameter(torch.randn(shapes["markov_in"], device=device) * width**-0.5)
        self.markov_out = nn.Parameter(torch.zeros(shapes["markov_out"], device=device))
        self.confidence = nn.Parameter(torch.zeros(shapes["confidence"], device=device))
        self.confidence.data[:, -1] = 1.0  # at first the confidence is the probability of the likeliest token
        self.confidence_bias = nn.Parameter(torch.zeros(shapes["confidence_bias"], device=device))

    def clues(self, states: Tensor, m: Tensor, logits: Tensor) -> Tensor:
        """[x, m, f] (rows, width + rank + 1), of one head's states (rows, width), m and logits."""
        logits = logits.float()
        likeliest = logits.amax(-1) - logits.logsumexp(-1)
        odds = likeliest - torch.log1p(-likeliest.exp().clamp(max=CERTAIN))
        return torch.cat([states, m, odds[:, None].to(states.dtype)], -1)

    def certainty(self, clues: Tensor, head: int) -> Tensor:
        """The confidence (rows,) of one head as a logit."""
        return (clues @ self.confidence[head] + self.confidence_bias[head]).float()

    def forward(self, hidden: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All heads at once, the tokens being known, as in training: hidden (rows, width) and before (rows,
        heads), the token before each guessed one -> logits (rows, heads, V), and what they came from:
        states (heads, rows, width) and m (rows, heads, rank).
        """
        steps = torch.einsum("rw,hvw->hrv", hidden, self.block) + self.block_bias[:, None]
        states = hidden + F.silu(steps)
        m = self.embedding[before].to(self.markov_in.dtype) @ self.markov_in  # the target's may be another
        shared = states @ self.output.T
        logits = [shared[j] + m[:, j] @ self.markov_out[j] for j in range(self.heads)]
        return torch.stack(logits, 1), states, m


def shapes_of(width: int, words: int, heads: int, markov_rank: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters; `words`: tokens that can be drafted."""
    return {
        "block": (heads, width, width),
        "block_bias": (heads, width),
        "markov_in": (width, markov_rank),
        "markov_out": (heads, markov_rank, words),
        "confidence": (heads, width + markov_rank + 1),
        "confidence_bias": (heads,),
    }


class HeadsError(ValueError):
    """The checkpoint cannot be used; one sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class HeadsConfig:
    """`config.json`."""

    version: str  # of this checkpoint, a free text
    heads: int  # tokens drafted at once
    width: int  # of the target's hidden state
    markov_rank: int
    vocabulary_size: int  # tokens that can be drafted
    target_vocabulary_size: int
    target_digest: str  # of the target, as `turbo inspect` states it
    domain: str = ""  # of the training data, in a word
    training: dict[str, Any] = field(default_factory=dict)  # metadata that the engine ignores
    kind: str = KIND
    format: int = FORMAT


def save_heads(folder: Path, config: HeadsConfig, heads: Heads) -> None:
    """Write a checkpoint; an incomplete folder has no configuration."""
    tensors = {name: value.detach().contiguous().cpu() for name, value in heads.state_dict().items()}
    tensors[_VOCABULARY] = heads.vocabulary.cpu()
    write_whole_by(folder / WEIGHTS_FILE, lambda scratch: save_file(tensors, scratch))
    write_whole(folder / CONFIG_FILE, json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def tensors_digest(learned: nn.Module, vocabulary: Tensor) -> str:
    """Return the sha256 of the learned tensors and their vocabulary, in hex."""
    digest = hashlib.sha256()
    for name, value in sorted({**learned.state_dict(), _VOCABULARY: vocabulary}.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_heads(folder: Path, target: Target) -> tuple[HeadsConfig, Heads]:
    """Load heads in evaluation mode, with the target's dtype and device. Raises HeadsError."""
    config = read_config(folder)
    vocabulary_size, width = target.embedding.shape
    if config.target_digest != target.digest:
        raise HeadsError(
            f"{folder}: these heads belong to the model {config.target_digest}, and {target.digest} is "
            "served; name heads that were trained for it"
        )
    for name, served in (("width", width), ("target_vocabulary_size", vocabulary_size)):
        if (trained := getattr(config, name)) != served:
            raise HeadsError(
                f"{folder}: {name} is {trained} and the model has {served}; "
                "name heads that were trained for it"
            )
    try:
        (folder / WEIGHTS_FILE).open("rb").close()  # safetensors calls any trouble a missing file
        # not mapped: a copy over the file in use would end the process
        tensors = load_file(folder / WEIGHTS_FILE, backend="pread")
    except (OSError, SafetensorError) as error:
        raise HeadsError(f"{folder / WEIGHTS_FILE} cannot be read: {error}; copy the folder again") from error
    vocabulary = tensors.pop(_VOCABULARY, torch.empty(0))
    _check_vocabulary(folder, config, vocabulary)
    # before allocation: a damaged configuration may exceed the memory
    expected = shapes_of(config.width, config.vocabulary_size, config.heads, config.markov_rank)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if shapes != expected:
        wrong = sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))
        raise HeadsError(
            f"{folder / WEIGHTS_FILE}: {wrong[0]} is {shapes.get(wrong[0], 'missing')} and its configuration "
            f"wants {expected.get(wrong[0], 'no such tensor')}; train the heads again"
        )
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise HeadsError(f"{folder / WEIGHTS_FILE} has values that are no numbers; train the heads again")
    output = target.output_rows(vocabulary.to(target.embedding.device))
    heads = Heads(target.embedding, output, vocabulary, heads=config.heads, markov_rank=config.markov_rank)
    heads.load_state_dict(tensors)
    return config, heads.to(target.embedding.dtype).eval().requires_grad_(False)


def read_config(folder: Path) -> HeadsConfig:
    """Read `config.json` of a checkpoint. Raises HeadsError."""
    path = folder / CONFIG_FILE
    document = read_object(path, HeadsError, "name a folder of Turbo heads")
    if document.get("kind") != KIND:
        raise HeadsError(f'{path}: kind is not "{KIND}"; name a folder of Turbo heads')
    if document.get("format") != FORMAT:
        raise HeadsError(
            f"{path}: format {document.get('format')} is unknown, this version reads {FORMAT}; "
            "train the heads with this version"
        )
    values: dict[str, Any] = {}
    for item in dataclasses.fields(HeadsConfig):
        name, value = item.name, document.get(item.name, {} if item.name == "training" else item.default)
        if value is dataclasses.MISSING:
            raise HeadsError(f"{path}: {name} is missing; train the heads again")
        is_size = type(value) is int and value >= (name != "markov_rank")
        if not (name == "training" or (isinstance(value, str) if item.type == "str" else is_size)):
            raise HeadsError(f"{path}: {name} cannot be {value!r}; train the heads again")
        values[name] = value
    return HeadsConfig(**values)


def copied_bytes(config: HeadsConfig, dtype: torch.dtype) -> int:
    """Memory of what heads copy of the model: rows of its LM head, twice, and a table of all its tokens."""
    rows = 2 * config.vocabulary_size * config.width
    return (rows + config.target_vocabulary_size * config.markov_rank) * dtype.itemsize


def _check_vocabulary(folder: Path, config: HeadsConfig, ids: Tensor) -> None:
    size, limit = config.vocabulary_size, config.target_vocabulary_size
    fits = ids.dtype == torch.int64 and ids.shape == (size,)
    if not (fits and bool((ids.diff() > 0).all()) and ids[0] >= 0 and ids[-1] < limit):
        raise HeadsError(
            f"{folder / WEIGHTS_FILE}: {_VOCABULARY} must be {config.vocabulary_size} ascending token ids of "
            f"the target's {config.target_vocabulary_size}; train the heads again"
        )


class _Guess(NamedTuple):
    """One head's next token for one draft."""

    place: int  # in the heads' vocabulary
    chance: float  # that it is accepted, as the head says; perhaps NaN


class HeadsDrafter(Drafter):
    """The drafter `heads`. Keeps no state of a request; one without a hidden row gets no draft.

    The heads are packed: on a CPU that is three to five times as fast at 1 to 16 rows. The confidences'
    weights are rows below those of the LM head and of the Markov term, so they need no product of their own.
    What is drafted may differ in its last bits from training: it is a guess anyway.

    On a device, where each question is a wait, the first head that guesses takes all later ones with it, each
    from the token of the one before; there is one copy to the host for all. A draft that goes on with another
    drafter's token has left that chain, and gets no more from it in this step.
    """

    name = "heads"
    is_costly = reads_hidden = True

    @torch.inference_mode()
    def __init__(self, heads: Heads, noise: Noise, version: str = "", *, at_once: bool = False) -> None:
        """`version`: of the checkpoint; `at_once`: with all heads before the first guess is used."""
        super().__init__()
        self._at_once = at_once
        self.noise, self.version = noise, version
        self.heads = heads.heads
        self.dtype = heads.block.dtype
        self.vocabulary: list[int] = heads.vocabulary.tolist()
        self.ids = heads.vocabulary
        width, rank = heads.block.shape[2], heads.markov_in.shape[1]
        self._block = [_product(heads.block[j], heads.block_bias[j]) for j in range(self.heads)]
        self._output = _product(torch.cat([heads.output, heads.confidence[:, :width]]))
        below = torch.zeros(self.heads, self.heads, rank, dtype=self.dtype, device=heads.block.device)
        for j in range(self.heads):
            below[j, j] = heads.confidence[j, width : width + rank]
        self._markov = [_product(torch.cat([heads.markov_out[j].T, below[j]])) for j in range(self.heads)]
        self._table = heads.embedding.to(self.dtype) @ heads.markov_in  # m, by the token before
        self._odds = heads.confidence[:, -1].tolist()
        self._bias = heads.confidence_bias.tolist()

    @torch.inference_mode()
    def begin(self, requests: Sequence[DraftRequest]) -> None:
        """Stack the hidden rows of the requests that have one."""
        self._requests, self._depth = requests, 0
        self._reach = min(self.heads, max((request.limit for request in requests), default=0))
        self._chains: dict[int, list[_Guess]] = {}  # of this head and later ones, by request
        hidden = [request.hidden for request in requests if request.hidden is not None]
        drafted = (index for index, request in enumerate(requests) if request.hidden is not None)
        self._before = {index: requests[index].tokens[-1] for index in drafted}  # of those that still grow
        self._place = {index: place for place, index in enumerate(self._before)}  # in the hidden rows
        self._hidden = torch.stack(hidden).to(self.dtype) if hidden else torch.empty(0)

    @torch.inference_mode()
    def next_candidates(self, best_confidence: Sequence[float]) -> list[TokenCandidate | None]:
        """Return guesses of the next head, a pass for all drafts that others are not sure of."""
        candidates: list[TokenCandidate | None] = [None] * len(self._requests)
        rows = [index for index in self._before if best_confidence[index] < SURE]
        if not rows or self._depth >= self._reach:
            return candidates
        if not self._chains:
            grown, end = ([*self._before], self._reach) if self._at_once else (rows, self._depth + 1)
            self._chains = dict(zip(grown, self._guess(grown, range(self._depth, end)), strict=True))
        for index in rows:
            place, chance = self._chains[index][0]
            if not math.isfinite(chance):  # finite weights may overflow
                continue
            cell = (self._requests[index].temperature > 0, self._depth, int(10 * chance))
            candidates[index] = TokenCandidate(self.vocabulary[place], self.confidence(cell, chance), cell)
        return candidates

    def advance(self, tokens: Sequence[int | None]) -> None:
        """Go on to the next head."""
        self._depth += 1
        self._before = {index: token for index in self._before if (token := tokens[index]) is not None}
        if not self._at_once:
            self._chains = {}
        elif self._chains:
            chains = self._chains
            self._before = {
                index: token
                for index, token in self._before.items()
                if token == self.vocabulary[chains[index][0].place]
            }
            self._chains = {index: chains[index][1:] for index in self._before}

    def _guess(self, indices: Sequence[int], heads: Sequence[int]) -> list[list[_Guess]]:
        """Guesses of consecutive heads for some requests; asks the device once."""
        device, requests = self._hidden.device, [self._requests[index] for index in indices]
        hidden = self._hidden
        if len(indices) < len(hidden):
            hidden = hidden.index_select(0, _column([self._place[index] for index in indices], device))
        before = _column([self._before[index] for index in indices], device)
        heat = by_head = None
        if any(request.temperature > 0 for request in requests):
            heat = upload(np.array([request.temperature for request in requests], np.float64), device)
            keys = [position_key(r.key, len(r.tokens) + head) for head in heads for r in requests]
            by_head = _column(keys, device).view(len(heads), -1)
        columns = list[Tensor]()
        for number, head in enumerate(heads):
            if columns:
                before = self.ids.index_select(0, columns[-3])
            outputs = self._outputs(hidden, before, head)
            logits = outputs[:, : -self.heads]
            likeliest, places = logits.max(-1)
            logs = likeliest - logits.logsumexp(-1)  # of the probabilities
            if heat is not None and by_head is not None:
                places = self._draw(logits, heat, by_head[number])
            columns += places, logs, outputs[:, head - self.heads]
        arrays = [array.tolist() for array in download(*columns)]
        guesses = [
            [_Guess(place, self._chance(head, *terms)) for place, *terms in zip(*three, strict=True)]
            for head, *three in zip(heads, arrays[::3], arrays[1::3], arrays[2::3], strict=True)
        ]
        return [list(chain) for chain in zip(*guesses, strict=True)]

    def _outputs(self, hidden: Tensor, before: Tensor, head: int) -> Tensor:
        """One head's logits (rows, V), and behind them the clues of all confidences (rows, heads)."""
        states = hidden + F.silu(self._block[head](hidden))
        m = self._table.index_select(0, before)
        return (self._output(states) + self._markov[head](m)).float()

    def _chance(self, head: int, log: float, clue: float) -> float:
        """A confidence, perhaps NaN, of a head whose likeliest token has that log probability."""
        odds = log - math.log1p(-min(math.exp(log), CERTAIN))
        logit = clue + self._odds[head] * odds + self._bias[head]
        return 1 / (1 + math.exp(-max(logit, -700.0)))

    def _draw(self, logits: Tensor, temperatures: Tensor, keys: Tensor) -> Tensor:
        """Places in the vocabulary: the engine's own draws from these logits, or the likeliest tokens."""
        hottest, places = logits.topk(min(_HOTTEST, logits.shape[1]))
        gumbel = self.noise.gumbel_rows(keys, self.ids[places])
        scores = hottest.double() / temperatures.clamp(min=1e-6)[:, None] + gumbel
        drawn = places.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)
        return torch.where(temperatures > 0, drawn, places[:, 0])


def _column(values: Sequence[int], device: torch.device) -> Tensor:
    return upload(np.array(values, np.int64), device)


def _product(weight: Tensor, bias: Tensor | None = None) -> BatchInvariantLinear:
    """Use the first kernel that this build and this processor support."""
    product = BatchInvariantLinear(weight.detach(), None if bias is None else bias.detach())
    if weight.device.type == "cpu":
        product.adopt_first(FREE_FORMS)
    return product
