"""How a token is drawn: y = argmax(l / T + g) over the tokens that remain, l the processed logits of a row.

g is Gumbel noise from a counter, a function of (seed, prompt, choice, position, token id) and of nothing
else (`noise.py`). So y is one draw from the requested distribution (Gumbel-max), and the same draw
whatever was drafted, batched or computed again. A row's processors see the prompt and the answer up to that
row, accepted drafts included; no drafts is the same code.

Written rules, since what is not written falls another way one day:
- Order: bad words and `min_tokens` forbid tokens; `logit_bias` is added; the repetition penalty divides
  positive logits and multiplies others, of tokens of the prompt or the answer; the frequency penalty is taken
  off for each time, the presence penalty once, of tokens of the answer (`processors.py`). Then the mask of
  the grammar, temperature, `min_p`, `top_k`, `top_p`, each on what the one before it left (`truncation.py`).
  vLLM lays the mask on first, which gives the same: nothing brings back what is forbidden.
- A temperature below `GREEDY_BELOW` is 0: y = argmax of the processed logits; `min_p`, `top_k` and `top_p`
  then change nothing.
- Candidates are ranked by processed logit, equal ones by lower id first.
- `min_p` keeps what has at least `min_p` of the likeliest token's probability. `top_k` keeps exactly the
  first k of the ranking. `top_p` keeps a token if those ranked before it have together less than p of the
  probability: always at least the first.
- Bad words: the last token of a run is forbidden where the answer ends with all the others. `min_tokens`
  forbids the stop tokens until the answer has that many.
- Of equal perturbed scores the lowest id wins. Scores are float64, processed logits float32.
- No result depends on the batch: what is computed for several rows at once is elementwise or a maximum;
  sums run over one row alone.
- Where every token is forbidden, `NoTokenError` ends the answer.
- Log probabilities are the model's own: of unprocessed logits at temperature 1 (`logprobs.py`).
"""
