"""The server's connection to the engine process."""
