"""What makes a recipe and a run portable: what they consist of, locks, packages, and training a run again."""
