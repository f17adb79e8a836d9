"""Log lines: ours carry their fields, the framework's do not bring whole objects along."""

from __future__ import annotations

import json
import logging

from turbo_operator.logs import JsonFormatter, TextFormatter


def record(name: str = "turbo_operator.controller.reconciler", **fields: object) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.INFO, __file__, 1, "created %s", ("Service",), None)
    vars(made).update(fields)
    return made


def test_a_json_line_holds_the_message_and_its_fields() -> None:
    line = json.loads(JsonFormatter().format(record(object="team/chat")))
    assert (line["level"], line["message"], line["object"]) == ("info", "created Service", "team/chat")
    assert line["time"].endswith("+00:00")


def test_a_text_line_ends_with_the_fields() -> None:
    assert (
        TextFormatter()
        .format(record(object="team/chat"))
        .endswith("INFO    created Service  object=team/chat")
    )


def test_fields_of_the_framework_are_left_out() -> None:
    assert "settings" not in json.loads(JsonFormatter().format(record("kopf.objects", settings=object())))
