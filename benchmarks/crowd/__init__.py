"""Clients that behave badly, and what becomes of those that do not."""
