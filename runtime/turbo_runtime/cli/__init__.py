"""Commands of the runtime: serving, training and measuring, for a person at a terminal."""
