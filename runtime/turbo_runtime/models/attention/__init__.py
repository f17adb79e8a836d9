"""Paged attention by one rule: a position's arithmetic depends on (prompt length, position) alone, and on the
position alone where tiles have the bits of rows.

One call of a fixed shape computes each whole aligned tile of a prompt (`tiles`), and each long span where the
way makes no difference. All other positions are rows, each computed as if it were alone, but batched over the
whole step (`rows`). `metadata` decides between the two.
"""
