"""The layers between token ids and logits, over a flat batch of rows."""
