"""Goodput control: how many drafts to verify for whom, so that speculation is never slower than none."""
