"""Which requests the server admits, and when a rejected client retries."""
