"""The content of volumes and snapshots as one stream of bytes, in both directions."""
