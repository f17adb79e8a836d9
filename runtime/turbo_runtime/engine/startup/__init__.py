"""What an engine does before its first step: load, check, measure, size."""
