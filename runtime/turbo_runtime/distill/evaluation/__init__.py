"""How good a draft is: acceptance, speedup, and the report."""
