"""What a volume is and what may happen to it: catalogue, capacity, claims, creation, deletion, staging, publishing."""
