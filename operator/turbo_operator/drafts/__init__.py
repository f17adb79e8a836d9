"""The life of a draft: its training, its canary, and what it speeds up."""
