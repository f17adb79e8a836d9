"""Capture of a deployment's own prompts, at its owner's request, for drafts to learn from.

request -> sampled, unless its client refuses -> redacted -> a line of a segment, in a folder with a limit of
size and age. Responses are not kept: the model generates them again when a draft is trained.
"""
