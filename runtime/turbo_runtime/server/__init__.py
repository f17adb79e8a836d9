"""The OpenAI-compatible HTTP server; it imports no torch."""
