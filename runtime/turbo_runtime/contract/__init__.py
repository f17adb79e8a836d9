"""What the runtime promises to whoever runs it: its command line, ports, paths and small JSON documents.

The operator imports this package and `shapes`, and nothing else of the runtime, so they use the standard
library only. One table of flags is what it writes into a pod and what `turbo serve` parses. Readers of JSON
ignore unknown keys and take a missing one for its default or refuse it: a pod may be older or newer.
"""
