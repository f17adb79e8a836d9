"""The parts of `lossless`: the engine on a tiny model, the real model, and the law."""
