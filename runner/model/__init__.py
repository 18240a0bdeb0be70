"""What is done to a model before any strategy sees it: its blocks found, recomputed, compiled."""
