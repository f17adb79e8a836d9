"""Turbo heads: a few small layers on the target's last hidden state, one for each of the next tokens."""
