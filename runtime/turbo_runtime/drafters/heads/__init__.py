"""Turbo heads: a few small layers on the target's last hidden state, one for each of the next tokens.

A checkpoint is a folder:
- `config.json`: `HeadsConfig`; what the heads are, for which model, of which training;
- `heads.safetensors`: `vocabulary` (V,) int64, the ids of the target that the heads can draft, ascending; and
  the parameters of `Heads`, under their own names.

No row of the target's embedding or LM head is stored: heads share those, so a checkpoint is useful with the
one model whose digest it names.
"""
