"""What ends a command with exit status 1."""

from __future__ import annotations


class BadInputError(Exception):
    """What was given cannot be planned with; the message is a sentence that names the file and the field."""
