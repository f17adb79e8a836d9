"""Drafters: a module each, behind `Proposer.propose` and `Proposer.observe`."""
