"""How fast a candidate is: step times, memory, speculation, and queueing."""
