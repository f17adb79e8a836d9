"""A response from token events to OpenAI's formats."""
