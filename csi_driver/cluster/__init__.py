"""Where volumes are: the stateless router of a cluster, and each node's side of it."""
