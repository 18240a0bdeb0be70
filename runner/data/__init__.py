"""Items in one global order, cut among the ranks, at a position that can be left and found again."""
