"""Who competes in `speculation`: each a worker process that reads lines of JSON and writes lines of JSON."""
