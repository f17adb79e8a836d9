"""`turbo plan` and `turbo explain`: the operator's planner for a person. What takes long is loaded late."""
