"""Prompts that a deployment keeps of its own traffic where its owner has asked for it, for drafts to learn
from.

request -> sampled, unless its client refuses -> redacted -> a line of a segment, in a folder with a bound on
size and age. Answers are not kept: the model gives them again when a draft is trained.
"""
