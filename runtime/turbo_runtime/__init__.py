"""Turbo's speculative runtime: an OpenAI-compatible server over a lossless speculative engine."""
