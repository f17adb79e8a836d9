"""Drafters: one file each, behind two verbs, `propose` and `observe`."""
