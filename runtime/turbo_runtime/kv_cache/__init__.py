"""Accounting of KV cache blocks, without torch."""
