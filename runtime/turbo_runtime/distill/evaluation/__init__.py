"""What a draft is worth: acceptance, speedup, and the report."""
