"""From an object and what was seen of it to the question that the planner is asked, and its answer."""
