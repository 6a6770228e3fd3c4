"""Contents as streams of bytes."""
