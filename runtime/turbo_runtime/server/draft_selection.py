"""Which of the trained drafts a request has: by a header, since it changes nothing of the answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from turbo_runtime.messages import DEFAULT_DRAFT, DraftStats
from turbo_runtime.protocol.errors import cut, invalid

DRAFT_HEADER = "X-Turbo-Draft"


def chosen_draft(said: Sequence[str], known: Iterable[DraftStats]) -> str:
    """The name in the request's headers of that name, by default the deployment's own draft. Raises ApiError
    (400) for one that is not in use.
    """
    name = ", ".join(said) if said else DEFAULT_DRAFT  # what several headers say, as HTTP reads it
    names = [draft.name for draft in known]
    if name in names:
        return name
    listed = ", ".join(f"'{each}'" for each in names)
    raise invalid(
        DRAFT_HEADER,
        f"There is no draft '{cut(name)}' here: send the header {DRAFT_HEADER} with one of {listed}, "
        "or leave it out.",
    )
