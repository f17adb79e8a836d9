"""Drafts are swapped, broken and taken away while requests run: every one ends with its own text."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from turbo_dev.fitting import say, write
from turbo_dev.server_process import PATIENCE
from turbo_runtime.drafters import loader
from turbo_runtime.drafters.heads import Heads
from turbo_runtime.drafters.loader import DraftLoader, WatchedFile
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.drafters.target import Target
from turbo_runtime.engine.loop import Engine
from turbo_runtime.messages import GenerationRequest

MakeEngine = Callable[..., Engine]


class Traffic:
    """Requests without end, and what became of each."""

    def __init__(self, engine: Engine, wanted: list[GenerationRequest], alone: dict[str, list[int]]) -> None:
        self._engine, self._wanted, self._alone = engine, wanted, alone
        self._live: dict[str, list[int]] = {}
        self._sent = self.answered = 0

    def until(self, reached: Callable[[], bool]) -> None:
        """Step with a full batch until then."""
        end = time.monotonic() + PATIENCE
        while not reached():
            assert time.monotonic() < end
            while len(self._live) < len(self._wanted):
                self._send()
            self._step()

    def settle(self) -> None:
        """Answer all that was sent."""
        while not self._engine.idle:
            self._step()
        assert not self._live
        assert self.answered == self._sent

    def more(self, count: int) -> None:
        """Step until so many more are answered."""
        enough = self.answered + count
        self.until(lambda: self.answered >= enough)

    def _send(self) -> None:
        request = self._wanted[self._sent % len(self._wanted)]
        name = f"{self._sent}/{request.request_id}"
        self._engine.accept(replace(request, request_id=name))
        self._live[name] = []
        self._sent += 1

    def _step(self) -> None:
        for event in self._engine.step().events:
            assert event.error is None
            self._live[event.request_id].extend(event.tokens)
            if event.finish_reason:
                said = self._live.pop(event.request_id)
                assert said == self._alone[event.request_id.partition("/")[2]]
                self.answered += 1


@pytest.fixture
def drafters(
    tmp_path: Path,
    target: Target,
    tiny_heads: Heads,
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Proposer]:
    """They follow `drafts.json` and look at it before every step."""
    ids = torch.arange(50)
    write(tmp_path / "good", tiny_heads, target, "v1")
    poor = Heads(target.embedding, target.output_rows(ids), ids, heads=2, markov_rank=4)
    write(tmp_path / "poor", poor, target, "v2")
    (tmp_path / "drafts.json").write_text('{"heads": "good"}')
    monkeypatch.setattr(loader, "LOOK_SECONDS", 0.0)
    noise = make_engine().noise
    file = WatchedFile(tmp_path / "drafts.json", DraftLoader(target, noise).load)
    yield Proposer(file.wait(time.monotonic()), file=file)
    file.close()


def swap(file: Path, **selection: object) -> None:
    """As a mounted ConfigMap is: the old one or the new one, never half of it."""
    scratch = file.with_suffix(".new")
    scratch.write_text(json.dumps(selection))
    scratch.replace(file)


def test_a_swap_a_broken_file_and_none_cost_no_request_a_byte(
    tmp_path: Path,
    drafters: Proposer,
    make_engine: MakeEngine,
    ask: Callable[[float], list[GenerationRequest]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted = [*ask(0.0)[:6], *ask(0.8)[3:9]]
    alone = {one.request_id: say(make_engine(), [one])[0].tokens for one in wanted}
    file = tmp_path / "drafts.json"
    engine = make_engine(drafters, blocks=40, step_tokens=96)
    traffic = Traffic(engine, wanted, alone)
    traffic.more(10)
    assert engine.stats().draft_version == "v1"

    swap(file, heads="poor")
    traffic.until(lambda: engine.stats().draft_version == "v2")
    traffic.more(10)

    with caplog.at_level(logging.ERROR):
        swap(file, heads="nowhere", version="v3")
        traffic.until(lambda: drafters.problem != "")
        traffic.more(10)
        assert engine.stats().draft_version == "v2"
        assert drafters.problem.startswith(f"{tmp_path / 'nowhere/config.json'} cannot be read")
        assert engine.stats().draft_error == drafters.problem

        file.unlink()
        traffic.until(lambda: drafters.problem.startswith(f"{file} cannot be read"))
        traffic.more(10)
        assert engine.stats().draft_version == "v2"
    said = [record.message for record in caplog.records]
    assert len(said) == 2
    assert all(line.startswith("drafts stay as they are: ") and "\n" not in line for line in said)

    swap(file, drafter="heads", heads="good", version="v4")
    traffic.until(lambda: engine.stats().draft_version == "v4")
    traffic.more(10)
    assert drafters.problem == ""
    traffic.settle()
    stats = engine.stats()
    assert 0 < stats.accepted_tokens < stats.draft_tokens
