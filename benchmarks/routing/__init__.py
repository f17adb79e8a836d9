"""Routers against a plain Service: emulated pods, the two ways to them, and clients."""
