"""Structured output: grammars compiled and matched."""
