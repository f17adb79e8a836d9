"""Takes requests in front of a router: holds them while no replica is there, and passes on nothing else."""
