"""Where a model lies, as a user writes it."""

from __future__ import annotations

from typing import Annotated

from turbo_operator.api.validation import Rule, Text

_HUB = r"hf://[A-Za-z0-9][-A-Za-z0-9_.]{0,95}/[A-Za-z0-9][-A-Za-z0-9_.]{0,95}"
_CLAIM = r"pvc://[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?(/[^/\s]+)*/?"


ModelURI = Annotated[
    str,
    Text(
        1024,
        f"{_HUB}|{_CLAIM}",
        "write hf://ORGANISATION/NAME for a model of the Hugging Face hub (its commit in revision), or "
        "pvc://CLAIM/PATH for a folder or .gguf file on a PersistentVolumeClaim",
        (
            Rule(
                "!self.split('/').exists(part, part == '..')",
                "write the path below the claim without '..'",
                lambda uri: ".." not in uri.split("/"),
            ),
        ),
    ),
]
