"""What is remembered on disk: the identity of a pool and one durable record per object."""
