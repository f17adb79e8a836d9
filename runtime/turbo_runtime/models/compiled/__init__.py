"""Kernels for CPUs that LLVM compiles at start for the processor at hand."""
