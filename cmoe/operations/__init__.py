"""What is done around runs on a cluster: looking at it before a run."""
