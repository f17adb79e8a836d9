"""What the runtime promises to whoever runs it: its command line, ports, paths and small JSON
documents.

The operator imports this module, what it imports, and `shapes`, and nothing else of the runtime, so they use
the standard library only. `RuntimeConfig.to_argv` is what the operator writes into a pod and
`RuntimeConfig.from_argv` what `turbo serve` parses: one table of flags, no drift.
Readers ignore unknown JSON keys and take a missing one for what its default says, or refuse the document: a
pod may be older or newer than its operator.
"""
