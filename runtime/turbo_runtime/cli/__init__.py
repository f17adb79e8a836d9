"""`turbo chat` and `turbo bench`: for a person at a terminal, with any server of the OpenAI API."""
