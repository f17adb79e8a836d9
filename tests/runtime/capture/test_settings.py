"""Settings are read as they are meant, and refused in one sentence that names the field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from turbo_runtime.capture import recorder
from turbo_runtime.capture.recorder import REDACTED, CaptureError, CaptureSettings, read_settings, redact


def test_what_is_not_said_is_the_default(tmp_path: Path) -> None:
    file = tmp_path / "capture.json"
    file.write_text('{"folder": "/capture"}')
    assert read_settings(file) == CaptureSettings("/capture")
    file.write_text(
        '{"folder": "/c", "sampleFraction": 0.25, "maxMib": 7, "maxAgeHours": 2, "redact": ["a+"]}'
    )
    found = read_settings(file)
    assert (found.sample_fraction, found.max_mib, found.max_age_hours) == (0.25, 7, 2)
    assert found.redact == ("a+",)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("[]", "expected a JSON object, got list; write a JSON object with 'folder'"),
        ("{", "cannot be read"),
        ({}, "folder must name a folder, not None"),
        ({"folder": "x", "sample": 1}, "there is no 'sample'; it knows folder, sampleFraction, maxMib"),
        ({"folder": "x", "sampleFraction": 1.5}, "sampleFraction must lie between 0 and 1, not 1.5"),
        ({"folder": "x", "sampleFraction": "all"}, "sampleFraction must be a number, not 'all'"),
        ({"folder": "x", "maxMib": 0}, "maxMib must lie between 1 and"),
        ({"folder": "x", "maxMib": True}, "maxMib must be a number, not True"),
        ({"folder": "x", "maxAgeHours": float("nan")}, "maxAgeHours must lie between 0.01"),
        ({"folder": "x", "redact": "a"}, "redact must be a list of patterns"),
        ({"folder": "x", "redact": ["a", "("]}, "redact[1] is no regular expression"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, document: object, told: str) -> None:
    file = tmp_path / "capture.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(CaptureError) as caught:
        read_settings(file)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_that_patterns_match_is_taken_out() -> None:
    patterns = [r"[\w.]+@[\w.]+", r"\b\d{16}\b"]
    text = "I am ann@example.org, card 4111111111111111, order 17"
    assert redact(text, patterns) == f"I am {REDACTED}, card {REDACTED}, order 17"


def test_a_prompt_on_which_a_pattern_does_not_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "PATTERN_SECONDS", 0.05)
    assert redact("a" * 60, [r"(a|aa)+[xy]"]) is None
