"""Finds and inspects the files of a model, without torch."""
