"""Compiling a grammar is bounded in time and memory, and what fails takes nobody else along."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest

from turbo_dev.tiny_engine import END, VOCABULARY, tokenizer
from turbo_runtime.messages import Grammar
from turbo_runtime.sampling.grammar import matcher as module
from turbo_runtime.sampling.grammar.compiler import GrammarError, GrammarTrial
from turbo_runtime.sampling.grammar.matcher import Grammars

HUGE = '{"type": "integer", "multipleOf": 999983}'  # as many states; minutes and gigabytes


def test_a_grammar_that_takes_too_long_is_refused_and_keeps_no_other_waiting(
    compiled: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMPILE_SECONDS", 1.0)
    late = [compiled.compile(Grammar("json_schema", HUGE.replace("83", last))) for last in ("79", "83")]
    behind = compiled.compile(Grammar("regex", "abc"))  # has its own time from when it begins
    for each in late:
        with pytest.raises(GrammarError, match="takes more than 1 s to compile; simplify it"):
            compiled.matcher(each)
    (mask,) = compiled.matcher(behind).masks(())
    letter = tokenizer().encode("a").ids[0]
    assert mask[letter >> 3] >> (letter & 7) & 1


def test_a_grammar_that_failed_for_want_of_something_is_tried_again_and_a_wrong_one_is_not(
    compiled: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(trial: GrammarTrial, grammar: Grammar, seconds: float) -> None:
        raise OSError("no process is to be had")

    wrong, right = Grammar("regex", "wrong("), Grammar("regex", "right")
    with pytest.raises(GrammarError, match="mend or simplify it") as refused:
        compiled.matcher(compiled.compile(wrong))
    with monkeypatch.context() as patch:
        patch.setattr(GrammarTrial, "check", check)
        with pytest.raises(GrammarError, match=r"compiled just now \(no process is to be had\); try again"):
            compiled.matcher(compiled.compile(right))
        assert not compiled.has(right)
        with pytest.raises(GrammarError) as again:
            compiled.matcher(compiled.compile(wrong))
    assert str(again.value) == str(refused.value)
    assert compiled.matcher(compiled.compile(right)).masks(())[0].any()
    assert compiled.has(right)


def test_a_slow_grammar_keeps_no_quick_one_waiting(
    compiled: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = Event()
    compiled._slow.thread.submit(others.wait)  # slow ones that came before
    with monkeypatch.context() as patch:
        patch.setattr(module, "QUICK_SECONDS", 0.001)
        slow = compiled.compile(Grammar("json_schema", '{"type": "integer", "multipleOf": 99991}'))
        compiled._quick.thread.submit(lambda: None).result()  # that one was too slow by now
    assert compiled.matcher(compiled.compile(Grammar("regex", "abcd"))).masks(())[0].any()
    assert not slow.done()
    others.set()
    assert compiled.matcher(slow).masks(())[0].any()


def test_a_grammar_that_takes_too_much_memory_is_refused_and_the_next_is_tried(tmp_path: Path) -> None:
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    trial = GrammarTrial(tmp_path / "tokenizer.json", VOCABULARY, [END], max_bytes=32 << 20)
    huge, small = Grammar("json_schema", HUGE), Grammar("regex", "ab")
    with pytest.raises(GrammarError, match="the json_schema takes too much memory to compile; simplify it"):
        trial.check(huge, 60.0)
    trial.check(small, 60.0)
    trial.close()
