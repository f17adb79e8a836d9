"""Tensor parallelism: one model, cut up among several processes."""
