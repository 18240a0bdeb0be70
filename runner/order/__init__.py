"""Orders in which the items of an epoch are read, one per file."""
