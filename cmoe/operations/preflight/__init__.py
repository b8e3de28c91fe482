"""A look at every machine of a cluster, and at what they do together, before a run."""
