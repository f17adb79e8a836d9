"""What the cluster has of each accelerator, what pods hold of it, and whom a change concerns."""
