"""Published measurements as arrays that the planner's own functions take, and fits of its coefficients."""
