"""Errors of the Hugging Face hub, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from turbo_runtime.model_files.source import HubUnreachableError, ModelError

_PASSING = (408, 429)  # besides all of 5xx: statuses that the same request may not meet again


@contextmanager
def hub_errors() -> Iterator[None]:
    """Raise HubUnreachableError where another try may help, and ModelError for what the hub refuses."""
    # here, since a local model needs no hub; HTTPError is its HTTP client's, whichever that is
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status >= 500 or status in _PASSING:
            raise HubUnreachableError(f"the hub answered with status {status}") from error
        raise ModelError(f"the hub refused it: {_first_line(error)}") from error
    except (HTTPError, ConnectionError) as error:
        raise HubUnreachableError(f"the hub cannot be reached: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
