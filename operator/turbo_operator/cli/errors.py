"""The error that ends a command with exit status 1."""

from __future__ import annotations


class BadInputError(Exception):
    """Input that cannot be planned; the message is a sentence that names the file and the field."""
