"""The method `eagle3`: one decoder layer that drafts a token at a time, for vLLM and SGLang."""
