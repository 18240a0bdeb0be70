"""Items in one global order, split among the ranks, and resumed at any position."""
