"""A client for any server with OpenAI's API."""
